"""Sources with and without pins, and commands for several lorries."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from initiator_kit import Project
from small_definitions import git


def packed(file: Path, content: bytes) -> str:
    """Make a tarball of one file; return its digest."""
    with tarfile.open(file, "w") as archive:
        info = tarfile.TarInfo("x-1/hello.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lorry(project: Project, name: str, **entry: str) -> Path:
    file = project.root / "sources" / f"{name}.lorry"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({name: entry}))
    return file


def test_pins_that_are_missing_are_a_warning_and_with_locked_an_error(project: Project) -> None:
    project.write(one="true", two="true")
    done = project.build()
    assert done.returncode == 0
    said = f"warning: not pinned by content: file://{project.source} main; --locked makes this an"
    assert done.stderr.count(said) == 1
    for command in (
        ("build", "../systems/small.morph", "--locked"),
        ("build", "../systems/small.morph", "one", "--locked"),
        ("show", "../systems/small.morph", "--locked"),
        ("graph", "../systems/small.morph", "--locked"),
        ("image", "../systems/small.morph", "--to", "x.img", "--locked"),
    ):
        done = project.run(*command)
        assert done.returncode == 1, command
        assert done.stderr == (
            "fabric-initiator: --locked: the definitions do not pin what these sources contain:\n"
            f"  file://{project.source} main (a name, which can be moved)\n"
            "A commit (40 hex digits) as `ref` pins it; `fabric-initiator lorry import NAME`"
            " records the tree of a lorry.\n"
        )
    strata = project.root / "strata/things.morph"
    commit = git(project.source, "rev-parse", "HEAD").strip()
    strata.write_text(strata.read_text().replace("ref: main", f"ref: {commit}"))
    done = project.build("--locked")
    assert done.returncode == 0
    assert "not pinned" not in done.stderr


def test_lorry_that_fails_does_not_stop_others(project: Project) -> None:
    archive = project.root / "x.tar"
    digest = packed(archive, b"1")
    good = lorry(project, "good", type="tarball", version="1", url=archive.as_uri())
    lorry(project, "bad", type="tarball", version="1", url="file:///no/such/file")
    done = project.run("lorry", "update", "nothing", "bad", "good")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"good: sha256 (none) -> {digest[:12]}"
    first, second, third = done.stderr.splitlines()[-3:]
    assert first == "fabric-initiator: 2 of 3 lorries failed:"
    assert second.startswith("nothing: no such lorry in ")
    assert third.startswith("file:///no/such/file: cannot be downloaded: ")
    entry = json.loads(good.read_text())["good"]
    assert entry["sha256"] == digest
    assert len(entry["tree"]) == 40
    done = project.run("lorry", "update", "good", "--json")
    assert json.loads(done.stdout) == {"good": ["nothing newer"]}


def test_lorry_dry_run_changes_nothing(project: Project) -> None:
    archive = project.root / "x.tar"
    digest = packed(archive, b"1")
    file = lorry(project, "good", type="tarball", version="1", url=archive.as_uri())
    before = file.read_text()
    done = project.run("lorry", "update", "--dry-run")
    assert (done.returncode, done.stdout) == (0, f"good: sha256 (none) -> {digest[:12]}\n")
    assert file.read_text() == before
    for action in (["import"], ["list"], ["add", "x", "--type", "git", "url=http://h/x"]):
        done = project.run("lorry", *action, "--dry-run")
        assert done.returncode == 1
        assert done.stderr == "fabric-initiator: --dry-run is for `lorry update`\n"


@pytest.mark.parametrize("number", ["1.10", "5", "2026-10-18"])
def test_lorry_version_without_quotes_is_rejected(project: Project, number: str) -> None:
    file = lorry(project, "x", type="pypi")
    file.write_text(f"x:\n  type: pypi\n  version: {number}  # no quotes\n")
    done = project.run("lorry", "update", "x")
    assert done.returncode == 1
    read = "the date 2026-10-18" if "-" in number else f"the number {number.removesuffix('0')}"
    assert done.stderr == (
        f"sources/x.lorry:3: x: 'version' must be text, and YAML reads {number} as {read}:"
        f' write version: "{number}"\n'
    )


def test_lorry_import_records_the_tree(project: Project) -> None:
    archive = project.root / "x.tar"
    digest = packed(archive, b"1")
    file = lorry(project, "x", type="tarball", version="1", url=archive.as_uri(), sha256=digest)
    done = project.run("lorry", "import", "x")
    assert done.returncode == 0
    tree = json.loads(file.read_text())["x"]["tree"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"x: tree (none) -> {tree[:12]}"
    assert lines[1].startswith("x: 1 is commit ")
    assert project.run("lorry", "import", "x").stdout.splitlines() == lines[1:]
