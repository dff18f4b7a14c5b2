"""Lorry files: their fields, their errors, lock files and import keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric import bounds
from fabric.errors import DefinitionsError, SourceError
from fabric.trove.sources.lock_files import Lock
from fabric.trove.sources.lorries import Lorries
from fabric.trove.sources.pins import record

SHA = "ab" * 32


def load(folder: Path, *texts: str) -> Lorries:
    sources = folder / "sources"
    sources.mkdir(exist_ok=True)
    for name, text in zip("abc", texts, strict=False):
        (sources / f"{name}.lorry").write_text(text)
    return Lorries(sources)


def test_lorry_of_every_type_is_read(tmp_path: Path) -> None:
    lorries = load(
        tmp_path,
        f"""
zlib: {{type: debian-source, version: "1.3", sha256: {SHA}, ref: v1.3, components: {{doc: {SHA}}}}}
gnome/glib: {{type: git, url: "https://host/glib"}}
baserock:thing: {{type: tarball, url: "https://host/t.tgz", version: 1.2.3, sha256: {SHA}}}
""",
        f"""
ply: {{type: pypi, version: "3.11", sha256: {SHA}}}
set:
  type: debian-packages
  packages: [gcc, libc6-dev]
  exclude: [debconf]
  version: "13"
""",
    )
    assert {lorry.repo for lorry in lorries} == {
        *("upstream:zlib", "upstream:gnome/glib", "baserock:thing", "upstream:ply", "upstream:set")
    }
    zlib = lorries.named("zlib")
    assert (zlib.package, zlib.ref, zlib.full_ref) == ("zlib", "v1.3", "refs/tags/v1.3")
    assert zlib.where == "sources/a.lorry:2"
    assert lorries.get("upstream:zlib.git") == zlib
    assert lorries.get("zlib") == zlib
    assert lorries.get("baserock:zlib") is None
    packages = lorries.named("set")
    assert (packages.ref, packages.full_ref) == ("13", "refs/heads/13")
    assert packages.architecture == "amd64"
    assert packages.lock_file == tmp_path / "sources" / "set.lock"
    assert lorries.named("ply").package == "ply"
    with pytest.raises(SourceError, match=r"nothing: no such lorry in .*there are: baserock:thing"):
        lorries.named("nothing")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("zlib", "1: a lorry file is a mapping"),
        ("zlib: 5", "1: zlib must be a mapping, not the number 5"),
        ("zlib: {}", "1: zlib: the field 'type' is missing"),
        (
            "zlib:\n  type: ftp",
            "2: zlib: unknown type 'ftp'; known are git, tarball, debian-source",
        ),
        ("zlib: {type: git}", "1: zlib: a lorry of type git needs 'url'"),
        (
            "zlib: {type: git, url: x, sha256: y}",
            "zlib: unknown field 'sha256'; known are cpe, license, purl, supplier, type, url, vex",
        ),
        ("zlib: {type: git, url: -x}", "'url' must be like a git URL"),
        ("../x: {type: git, url: x}", "../x: this is no name of a repository"),
        (
            f"z:\n  type: tarball\n  url: http://h/x\n  version: 1.10\n  sha256: {SHA}",
            "4: z: 'version' must be text, and YAML reads 1.10 as the number 1.1: write"
            ' version: "1.10"',
        ),
        (
            'z:\n  type: pypi\n  version: "1"\n  sha256: 12345',
            "4: z: 'sha256' is the number 12345, not text: put it in quotes",
        ),
        (f"z: {{type: tarball, url: ftp://x, version: a, sha256: {SHA}}}", "'url' must be like"),
        (
            f'z: {{type: debian-source, version: "1", sha256: {SHA}, components: {{doc: x}}}}',
            "z: 'doc' must be the 64 hex digits of a SHA-256",
        ),
        (
            'z: {type: debian-packages, version: "1", packages: gcc}',
            "'packages' must be a list, not",
        ),
        ('z: {type: debian-packages, version: "1", packages: [-o]}', "'-o' is no package name"),
        ("z: [", "not YAML"),
        ("z: {type: git, url: a}\nz: {type: git, url: b}", "2: 'z' is given twice"),
    ],
)
def test_lorry_error_has_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DefinitionsError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith("sources/a.lorry:")
    assert problem in str(caught.value)


def test_lorry_errors_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DefinitionsError) as caught:
        load(tmp_path, "x: 5\ny: {type: git, url: u}", "y: {type: git, url: v}\nz: {}")
    assert [str(one) for one in caught.value.problems] == [
        "sources/a.lorry:1: x must be a mapping, not the number 5",
        "sources/b.lorry:1: upstream:y is already in sources/a.lorry:2",
        "sources/b.lorry:2: z: the field 'type' is missing",
    ]


SET = 'set: {type: debian-packages, version: "1", packages: [gcc]}'
GCC = f"gcc 4:14.2.0-1 amd64 {SHA} 1234"


@pytest.mark.parametrize(
    "line",
    [
        "gcc 1.0 amd64",
        f"-oDir::Etc=x 1 amd64 {SHA} 5",
        f"../gcc 1 amd64 {SHA} 5",
        f"gcc 1;id amd64 {SHA} 5",
        f"gcc 1 amd64/x {SHA} 5",
        "gcc 1 amd64 ../../x 5",
        f"gcc 1 amd64 {SHA.upper()} 5",
        f"gcc 1 amd64 {SHA} 5 more",
        f"gcc 1 amd64 {SHA} \u0665",  # a digit outside ASCII
        f"gcc 1 amd64 {SHA} 5\r",
        "tree 1234",
        f"tree {SHA[:40]}\ntree {SHA[:40]}",
    ],
)
def test_lock_file_error_has_its_line(tmp_path: Path, line: str) -> None:
    lorry = load(tmp_path, SET).named("set")
    lorry.lock_file.write_text(f"# fine\n{GCC}\n{line}\n", newline="")
    number = 3 + line.count("\n")
    with pytest.raises(SourceError) as caught:
        lorry.locked()
    assert str(caught.value) == (
        f"{lorry.lock_file}:{number}: not a line of a lock file, which is NAME VERSION ARCHITECTURE"
        " SHA-256 SIZE; make it again with `fabric-initiator lorry update set`"
    )


def test_lock_file_records_the_tree(tmp_path: Path) -> None:
    lorry = load(tmp_path, SET).named("set")
    assert lorry.locked() == ()
    key = lorry.import_key()
    text = lorry.with_lock(Lock((), "12" * 20)).lock.text("set") + GCC + "\n"
    lorry.lock_file.write_text(text)
    again = load(tmp_path, SET).named("set")
    assert again.recorded_tree == "12" * 20
    assert [str(one) for one in again.locked()] == [GCC]
    assert again.lock.text("set") == text
    lorry.lock_file.write_text(GCC)
    without = load(tmp_path, SET).named("set")
    assert without.import_key() == again.import_key() != key, "the tree is compared, not a name"


@pytest.mark.bound("DEFINITIONS_FILE")
def test_lorry_file_past_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"a\.lorry: cannot be read: it has more than 8,388,608 bytes"
    ):
        load(tmp_path, "#" * (bounds.DEFINITIONS_FILE + 1))


def test_lorry_import_key_depends_on_pins_only(tmp_path: Path) -> None:
    def key(text: str) -> str:
        return load(tmp_path, "x: {type: " + text + "}").named("x").import_key()

    base = key(f'tarball, url: http://h/a, version: "1", sha256: {SHA}')
    assert base == key(f'tarball, url: http://other/b, version: "2", sha256: {SHA}')
    assert base == key(f'pypi, version: "1", sha256: {SHA}')
    assert base != key(f'pypi, version: "1", sha256: {SHA[::-1]}')
    assert base != key(
        f'debian-source, version: "1", sha256: {SHA}, components: {{d: {SHA}}}, package: xx'
    )


def test_an_update_leaves_a_lorry_readable_for_others(tmp_path: Path) -> None:
    lorries = load(tmp_path, f'x: {{type: tarball, url: http://h/a, version: "1", sha256: {SHA}}}')
    before = os.umask(0o077)
    try:
        record(lorries.named("x"), "12" * 20)
    finally:
        os.umask(before)
    assert (tmp_path / "sources/a.lorry").stat().st_mode & 0o777 == 0o644
