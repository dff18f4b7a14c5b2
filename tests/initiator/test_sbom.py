"""``sbom``, and ``image --sbom``: of systems that are built, and of what definitions say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from initiator_kit import Project
from small_definitions import git

from fabric.jobs import Blob
from fabric.trove.artifacts.store import Store

SYSTEM = "../systems/small.morph"
#: A license that any detector knows.
MIT = (Path(__file__).parents[1] / "sbom/test_licenses.py").read_text().split('"""')[3][2:]


@pytest.fixture
def built(project: Project) -> Project:
    (project.source / "LICENSE").write_text(f"Copyright 2020 A\n\n{MIT}")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "a license")
    project.write(
        one="install -D hello.txt $DESTDIR/usr/bin/one",
        two=("one", "install -D hello.txt $DESTDIR/usr/bin/two"),
        none="true",
    )
    done = project.build()
    assert done.returncode == 0, done.stderr
    return project


def test_the_sbom_of_a_built_system(built: Project) -> None:
    done = built.run("sbom", SYSTEM, "--format", "cyclonedx-json", "--author", "Me <me@h.example>")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    found = {one["name"]: one for one in data["components"]}
    commit = git(built.source, "rev-parse", "main").strip()
    assert found.keys() == {"one", "two", "none"}
    assert found["none"]["scope"] == "excluded", "nothing of it is in the image"
    assert "scope" not in found["one"]
    assert found["one"]["pedigree"]["commits"] == [{"uid": commit}]
    assert found["one"]["licenses"] == [{"expression": "MIT", "acknowledgement": "declared"}]
    listed = json.loads(built.run("show", SYSTEM, "--json").stdout)
    keys = {step["name"]: step["key"] for step in listed}
    store = Store(str(built.cache / "artifacts"), built.cache / "tmp")
    blobs: dict[str, Blob | None] = {}
    for name in ("one", "small"):
        manifest = store.manifest(keys[name])
        assert manifest is not None
        blobs |= {artifact.name: artifact.blob for artifact in manifest.artifacts}
    blob = blobs["one-bins"]
    assert blob is not None
    delivered = {
        one["comment"]: {hash["alg"]: hash["content"] for hash in one["hashes"]}
        for one in found["one"]["externalReferences"]
        if one["type"] == "distribution"
    }
    assert delivered["one-bins.tar.zst"] == {
        "SHA-256": blob.sha256,
        "SHA-512": hashlib.sha512(store.read(blob)).hexdigest(),
    }
    rootfs = blobs["small-rootfs"]
    assert rootfs is not None
    assert data["metadata"]["component"]["hashes"][0]["content"] == rootfs.sha256
    assert data["metadata"]["timestamp"] == "1970-01-01T00:00:00+00:00"
    assert data["metadata"]["manufacturer"]["contact"][0]["email"] == "me@h.example"
    assert str(built.root) not in done.stdout


@pytest.mark.parametrize("form", ["spdx-json", "spdx-2.3-json", "cyclonedx-json"])
def test_the_same_system_gives_the_same_bytes(built: Project, form: str) -> None:
    to = built.logs / "s.json"
    first = built.run("sbom", SYSTEM, "--format", form)
    assert "reading one" in first.stderr
    again = built.run("sbom", SYSTEM, "--format", form, "--to", str(to))
    assert "reading" not in again.stderr, "what was found of chunks is kept"
    assert again.stdout.splitlines() == [
        f"{to}: 2 components of small",
        "  built with  1 others",
    ]
    assert to.read_text() == first.stdout
    for file in built.cache.glob("sbom/*"):
        file.write_bytes(b"rubbish")
    assert built.run("sbom", SYSTEM, "--format", form).stdout == first.stdout


def test_time_is_that_in_the_environment(built: Project) -> None:
    def run(text: str) -> subprocess.CompletedProcess[str]:
        return built.run("sbom", SYSTEM, environ={"SOURCE_DATE_EPOCH": text})

    assert '"created": "2025-01-01T00:00:00Z"' in run("1735689600").stdout
    for wrong in ("yesterday", "-1", "999999999999", "1\n"):
        done = run(wrong)
        assert done.returncode == 1
        assert "must be seconds since 1970, as `git log -1 --format=%ct` prints" in done.stderr


def test_a_system_that_is_not_built_has_a_planned_sbom_only(project: Project) -> None:
    project.write(one="true")
    done = project.run("sbom", SYSTEM)
    assert done.returncode == 1
    assert "small: not built yet with these inputs; run: fabric-initiator build" in done.stderr
    assert "fabric-initiator sbom ../systems/small.morph --planned" in done.stderr
    planned = project.run("sbom", SYSTEM, "--planned", "--format", "spdx-2.3-json")
    assert planned.returncode == 0, planned.stderr
    names = [one["name"] for one in json.loads(planned.stdout)["packages"]]
    assert names == ["small", "one"]


@pytest.mark.parametrize("author", ["Me", "<me@h.example>", "Me <me>", "Me\x1b <me@h.example>"])
def test_an_author_has_a_name_and_an_address(project: Project, author: str) -> None:
    project.write(one="true")
    done = project.run("sbom", SYSTEM, "--planned", "--author", author)
    assert done.returncode == 1
    assert "--author" in done.stderr
    assert "write it like NAME <EMAIL or URL>" in done.stderr


def test_a_file_that_cannot_be_written_is_reported(project: Project) -> None:
    project.write(one="true")
    done = project.run("sbom", SYSTEM, "--planned", "--to", "no/such/folder/s.json")
    assert done.returncode == 1
    assert "no/such/folder/s.json: the SBOM cannot be written: No such file" in done.stderr


def test_without_its_libraries_the_command_says_what_to_install(project: Project) -> None:
    project.write(one="true")
    script = "import sys; sys.modules['packageurl'] = None; from fabric.initiator import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{script}sys.exit(main())", "sbom", SYSTEM, "--planned"],
        cwd=project.logs,
        env=project.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "an SBOM needs packageurl" in done.stderr
    assert "pip install 'distbuild[sbom]'" in done.stderr


def test_a_cached_build_loads_nothing_of_it(built: Project) -> None:
    names = "packageurl|spdx|cyclonedx|license|fabric.sbom|packaging"
    script = (
        "import sys, re\nfrom fabric.initiator import main\n"
        "code = main()\n"
        f"print('LOADED', [m for m in sys.modules if re.match('{names}', m)])\nsys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "build", SYSTEM],
        cwd=built.logs,
        env=built.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_gc_removes_what_was_found_of_chunks(built: Project) -> None:
    built.run("sbom", SYSTEM)
    files = list(built.cache.glob("sbom/*"))
    assert len(files) == 2
    old = time.time() - 30 * 86400
    os.utime(files[0], (old, old))
    assert "facts" in built.run("gc").stdout
    assert [file for file in files if file.exists()] == files[1:]


@pytest.mark.parametrize(
    ("name", "form"), [("s.json", "spdx-json"), ("s.cdx.json", "cyclonedx-json")]
)
def test_an_image_has_its_sbom_beside_it(built: Project, name: str, form: str) -> None:
    author = ("--author", "Me <https://h.example/>")
    done = built.run("image", SYSTEM, "--to", "a.tar", "--sbom", name, *author)
    assert done.returncode == 0, done.stderr
    assert f"  sbom    {name}\n" in done.stdout
    alone = built.run("sbom", SYSTEM, "--format", form, *author)
    assert (built.logs / name).read_text() == alone.stdout
    again = built.run("image", SYSTEM, "--to", "a.tar", "--force", "--json", "--sbom", name)
    assert json.loads(again.stdout)["sbom"] == name
    assert "sbom" not in json.loads(
        built.run("image", SYSTEM, "--to", "a.tar", "--force", "--json").stdout
    )


def test_an_image_is_not_made_if_its_sbom_cannot_be(built: Project) -> None:
    done = built.run("image", SYSTEM, "--to", "a.tar", "--sbom", "s.json", "--author", "Me")
    assert done.returncode == 1
    assert "--author Me: write it" in done.stderr
    done = built.run("image", SYSTEM, "--to", "a.tar", "--sbom", "no/folder/s.json")
    assert done.returncode == 1
    assert "no/folder: no such directory" in done.stderr
    assert not (built.logs / "a.tar").exists()


@pytest.mark.parametrize("form", ["spdx-json", "spdx-2.3-json", "cyclonedx-json"])
def test_files_are_those_of_the_image(built: Project, form: str) -> None:
    to = built.logs / "s.json"
    args = ("sbom", SYSTEM, "--files", "--format", form)
    done = built.run(*args, "--to", str(to))
    assert done.returncode == 0, done.stderr
    assert built.run("checkout", SYSTEM, "--to", "out").returncode == 0
    files = [file for file in (built.logs / "out").rglob("*") if file.is_file()]
    document = to.read_text()
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in document
        assert f"/{file.relative_to(built.logs / 'out')}" in document
    own = [file for file in files if "bin" not in file.parts]
    assert {file.name for file in files} - {file.name for file in own} == {"one", "two"}
    assert f"  files       {len(files)}, {len(own)} of them the system's own" in done.stdout
    assert built.run(*args).stdout == document, "the same bytes"
    if form == "cyclonedx-json":
        found = {one["name"]: one for one in json.loads(document)["components"]}
        assert [one["name"] for one in found["one"]["components"]] == ["/usr/bin/one"]


@pytest.mark.parametrize("other", [("--planned",), ("--format", "openvex-json")])
def test_files_need_a_build_and_a_format_that_has_them(
    project: Project, other: tuple[str, ...]
) -> None:
    project.write(one="true")
    done = project.run("sbom", SYSTEM, "--files", *other)
    assert done.returncode == 1
    assert f"--files: with {' '.join(other)} there are no files to list: leave one" in done.stderr
