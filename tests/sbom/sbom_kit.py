"""Definitions with every kind of source, and readers of the formats that are not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import lib4sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from ntia_conformance_checker.bsi_checker import BSIChecker
from spdx_tools.spdx.parser.error import SPDXParsingError
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from fabric.definitions.graph import Graph
from fabric.definitions.load import load
from fabric.sbom.bill import Archive, Bill, Party
from fabric.sbom.collect import Built, ChunkFact, PackageFact, collect
from fabric.trove.sources.lorries import Lorries

AUTHOR = Party("Example", "https://example.com/")
ABOUT = "license: MIT, supplier: 'Someone <someone@example.com>'"


def sha(number: int) -> str:
    return f"{number:04x}" + "f" * 60


LORRIES = f"""\
zlib:
  type: tarball
  url: https://user:secret@zlib.example/fossils/zlib-1.3.1.tar.gz
  version: 1.3.1
  sha256: {sha(1)}
  purl: pkg:github/madler/zlib
  cpe: zlib:zlib
  license: Zlib
  supplier: Mark Adler <zlib@gzip.org>
  patches: [patches/zlib.patch]
gcc:
  type: tarball
  url: https://gcc.example/gcc-14.2.0.tar.xz
  version: 14.2.0
  sha256: {sha(2)}
  {ABOUT.replace(", s", chr(10) + "  s")}
  components:
    gmp: {{url: 'https://gmp.example/gmp-6.3.0.tar.xz', sha256: {sha(3)}, version: 6.3.0,
          {ABOUT}, cpe: 'gmplib:gmp'}}
    zlib: {{lorry: zlib}}
libonig:
  type: debian-source
  version: 6.9.9+dfsg-3
  debian-patches: true
  sha256: {sha(4)}
  debian-sha256: {sha(5)}
  license: BSD-2-Clause
wheel:
  type: pypi
  package: Some.Wheel
  version: '1.2'
  sha256: {sha(6)}
  {ABOUT.replace(", s", chr(10) + "  s")}
debs:
  type: debian-packages
  version: '13'
  packages: [libc6]
  license: GPL-2.0-or-later
wheels:
  type: pypi-wheels
  version: '1'
  python: '3.13'
  packages: [rich]
  {ABOUT.replace(", s", chr(10) + "  s")}
mirrored:
  type: git
  url: https://github.com/example/mirrored.git
  {ABOUT.replace(", s", chr(10) + "  s")}
"""
LOCKS = {
    "upstream_debs": f"libc6 2.41-12 amd64 {sha(7)} 1\ngcc-14 1:14.2.0-19 amd64 {sha(8)} 1\n",
    "upstream_wheels": f"rich 14.0.0 py3-none-any {sha(9)} 1\n",
}
#: Chunk -> (repository, ref, dependencies, whether it is in the system).
CHUNKS = {
    "gcc": ("upstream:gcc", "14.2.0", (), False),
    "libc": ("upstream:debs", "13", (), True),
    "zlib": ("upstream:zlib", "1.3.1", ("gcc", "libc"), True),
    "oniguruma": ("upstream:libonig", "6.9.9+dfsg-3", ("zlib",), True),
    "wheel": ("upstream:wheel", "1.2", (), True),
    "python": ("upstream:wheels", "1", (), True),
    "mirrored": ("upstream:mirrored", "v2", (), True),
}


def write(root: Path, lorries: str = LORRIES) -> tuple[Graph, Lorries]:
    """Write definitions with the lorries; return the system's graph, and the lorries."""
    sources = root / "sources"
    (sources / "patches").mkdir(parents=True)
    (sources / "patches/zlib.patch").write_text("--- a/x\n+++ b/x\n")
    (sources / "all.lorry").write_text(lorries)
    read = Lorries(sources)
    for lorry in read:
        if lorry.repo.replace(":", "_") in LOCKS:
            lorry.lock_file.write_text(LOCKS[lorry.repo.replace(":", "_")])
    files = {
        "VERSION": "version: 8\n",
        "systems/s.morph": "name: s\nkind: system\narch: x86_64\ndescription: A system.\n"
        "strata:\n- name: t\n  morph: strata/t.morph\n",
        "strata/t.morph": "name: t\nkind: stratum\nbuild-depends: []\nchunks:\n"
        + "".join(
            f"- name: {name}\n  repo: {repo}\n  ref: '{ref}'\n  build-system: manual\n"
            f"  build-depends: [{', '.join(depends)}]\n  build-only: {str(not there).lower()}\n"
            for name, (repo, ref, depends, there) in CHUNKS.items()
        ),
    }
    for path, text in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    found = {path: text.encode() for path, text in files.items()}
    return load(found.get, "systems/s.morph"), read


def built(graph: Graph) -> Built:
    """What a build of the system would tell."""
    chunks = {step.name: step.id for step in graph.steps if step.kind == "chunk"}
    facts = {
        chunks[name]: ChunkFact((Archive(f"{name}-misc.tar.zst", sha(100 + n), "ab" * 64, 5),))
        for n, (name, (*_, there)) in enumerate(CHUNKS.items())
        if there
    }
    packages = {
        sha(7): PackageFact(True, "cd" * 64, "LGPL-2.1-or-later", (), ("glibc", "2.41-12")),
        sha(8): PackageFact(False, "ef" * 64, "", ("usr/share/doc/gcc/copyright",), ("gcc", "1")),
    }
    wheels = {sha(9): PackageFact(True, "ef" * 64, "MIT")}
    for name, more in (("libc", packages), ("python", wheels)):
        facts[chunks[name]] = ChunkFact(facts[chunks[name]].archives, packages=more)
    commit = ("c" * 40, "d" * 40)
    return Built(
        key=sha(50),
        archive=Archive("s-rootfs.tar.zst", sha(99), "aa" * 64, 1000),
        commits={chunks["mirrored"]: commit},
        edited=frozenset(),
        chunks=facts,
        in_image=frozenset(facts),
    )


def bill(root: Path, *, planned: bool = False, lorries: str = LORRIES) -> Bill:
    """The bill of the system."""
    graph, read = write(root, lorries)
    known = None if planned else built(graph)
    return collect(graph, read, tool="0.1.0", author=AUTHOR, built=known)


# -- other programs that read the formats ----------------------------------------------------


@cache
def _schema(name: str) -> Any:
    file = Path(lib4sbom.__file__).parent / "schemas/spdx" / name
    return jsonschema_rs.validator_for(json.loads(file.read_text()))


def problems(form: str, document: bytes, scratch: Path) -> list[str]:
    """What the official schema, and the reference library, find wrong with a document."""
    return list(_problems(form, document, scratch))


def _problems(form: str, document: bytes, scratch: Path) -> Iterator[str]:
    if form == "cyclonedx-json":
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode())
        if error:
            yield str(error)
        return
    schema = _schema("3.0-schema.json" if form == "spdx-json" else "2.3-schema.json")
    for one in schema.iter_errors(json.loads(document)):
        yield f"{one.instance_path}: {one.message}"
    if form == "spdx-2.3-json":
        file = scratch / "a.spdx.json"
        file.write_bytes(document)
        try:
            parsed = parse_file(str(file))
        except SPDXParsingError as error:
            yield str(error)
        else:
            yield from (one.validation_message for one in validate_full_spdx_document(parsed))


def bsi(document: bytes, scratch: Path) -> dict[str, bool]:
    """The tests of TR-03183-2 on a document of SPDX 3: name -> whether it passes."""
    file = scratch / "b.spdx.json"
    file.write_bytes(document)
    checker = BSIChecker(str(file))
    assert not checker.parsing_errors
    assert not checker.validation_messages
    assert checker.components_evaluated
    return dict(checker.table_elements)
