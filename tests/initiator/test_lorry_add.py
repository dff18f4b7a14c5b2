"""`lorry add` writes an entry, pins it, and says what a stratum needs."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml
from initiator_kit import Project

from fabric.commands.shared.new_lorry import MARKS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offered(project: Project, tmp_path: Path) -> str:
    """The URL of a tarball with a configure script; definitions that know autotools."""
    project.write(one="true")
    (project.root / "DEFAULTS").write_text("build-systems:\n  autotools: {}\n")
    file = tmp_path / "thing-1.10.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        info = tarfile.TarInfo("thing-1.10/configure")
        info.size, info.mode = 10, 0o755
        archive.addfile(info, io.BytesIO(b"#!/bin/sh\n"))
    return file.as_uri()


def test_sources_have_a_mark_for_every_build_system_of_the_example() -> None:
    systems = yaml.safe_load((ROOT / "DEFAULTS").read_text())["build-systems"]
    assert set(MARKS.values()) == systems.keys() - {"manual"}


def digest(url: str) -> str:
    return hashlib.sha256(Path(url.removeprefix("file://")).read_bytes()).hexdigest()


def test_lorry_is_added_and_pinned(project: Project, offered: str) -> None:
    done = project.run(
        "lorry", "add", "some/thing", "--type", "tarball", f"url={offered}", "version=1.10"
    )
    assert done.returncode == 0, done.stderr
    text = (project.root / "sources/thing.lorry").read_text()
    head, _, tree = text.rstrip().rpartition(" ")
    assert head == (
        f"some/thing:\n  type: tarball\n  url: {offered}\n  version: '1.10'\n"
        f"  sha256: {digest(offered)}\n  tree:"
    )
    assert done.stdout == (
        "some/thing: added to sources/thing.lorry\n"
        f"some/thing: sha256 (none) -> {digest(offered)[:12]}\n"
        f"some/thing: tree (none) -> {tree[:12]}\n"
        "A stratum builds it with this below `chunks`, and its build-depends:\n"
        "- name: thing\n  build-system: autotools\n  repo: upstream:some/thing\n  ref: '1.10'\n"
    )


def test_lorry_is_added_to_an_existing_file(project: Project, offered: str) -> None:
    (project.root / "sources").mkdir()
    file = project.root / "sources/tools.lorry"
    file.write_text("# ours\nother:\n  type: git\n  url: https://host/other\n\n\n")
    (project.root / "sources/p.patch").write_text("--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+a\n")
    fields = (f"url={offered}", "version=1", "patches=p.patch", "ref=v1")
    done = project.run(
        *("lorry", "add", "thing", "--type", "tarball", "--file", "tools", *fields, "--json")
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["name"] == "thing"
    assert printed["changes"][0] == "added to sources/tools.lorry"
    assert printed["chunk"].endswith("ref: v1")
    assert file.read_text().startswith(
        "# ours\nother:\n  type: git\n  url: https://host/other\n\nthing:\n  type: tarball\n"
    )
    assert file.read_text().endswith("  patches:\n  - p.patch\n")


def test_git_repository_is_added_with_its_commit(project: Project, offered: str) -> None:
    assert offered
    url = f"url=file://{project.source}"
    done = project.run("lorry", "add", "baserock:mine", "--type", "git", url)
    assert done.returncode == 0, done.stderr
    assert (
        "- name: mine\n  morph: strata/STRATUM/mine.morph\n  repo: baserock:mine\n" in done.stdout
    )
    assert done.stdout.endswith("  unpetrify-ref: main\n")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((), "lorry add: give a name and a type: lorry add NAME --type TYPE"),
        (("x", "--type", "git", "url"), "'url': a field is written as FIELD=VALUE, such as"),
        (
            ("x", "--type", "tarball", "url=ftp://x", "colour=red"),
            "x: unknown field 'colour'; known are components, cpe, inner, license, patches, purl,"
            " ref, sha256, supplier, tree, type, url, version, vex\n"
            "x: a lorry of type tarball needs 'version'\n"
            "x: 'url' must be like https://host/file.tar.gz",
        ),
        (("../x", "--type", "git", "url=http://h/x"), "../x: this is no name of a repository"),
        (("x: y", "--type", "git", "url=http://h/x"), "x: y: this is no name of a repository"),
        (
            ("x", "--type", "git", "url=http://h/x", "--file", "../../x"),
            "'../../x': not the name of a lorry file, such as tools or tools.lorry",
        ),
        (
            ("x", "--type", "tarball", "url=file:///nowhere/x", "version=1"),
            "file:///nowhere/x: cannot be downloaded: No such file or directory\n"
            "So the lorry is not added.",
        ),
        (("there", "--type", "git", "url=http://h/x"), "sources/a.lorry:1: there is a lorry there"),
    ],
)
def test_wrong_lorry_is_not_added(
    project: Project, offered: str, args: tuple[str, ...], error: str
) -> None:
    assert offered
    (project.root / "sources").mkdir()
    file = project.root / "sources/a.lorry"
    file.write_text("there: {type: git, url: 'https://host/there'}")
    for more in ((), ("--file", "a")) if "--file" not in args else ((),):
        done = project.run("lorry", "add", *args, *more)
        assert done.returncode == 1
        assert f"fabric-initiator: {error}" in done.stderr
        assert [one.name for one in file.parent.iterdir()] == ["a.lorry"]
        assert file.read_text() == "there: {type: git, url: 'https://host/there'}"


def test_lorry_is_not_added_to_json(project: Project, offered: str) -> None:
    assert offered
    (project.root / "sources").mkdir()
    file = project.root / "sources/a.lorry"
    file.write_text('{"there": {"type": "git", "url": "https://host/there"}}')
    done = project.run("lorry", "add", "x", "--type", "git", "url=http://h/x", "--file", "a.lorry")
    assert done.returncode == 1
    assert "sources/a.lorry:3: not YAML" in done.stderr
    assert done.stderr.endswith("So the lorry is not added.\n")
    assert file.read_text() == '{"there": {"type": "git", "url": "https://host/there"}}'


def test_options_of_add_are_for_it_alone(project: Project, offered: str) -> None:
    assert offered
    done = project.run("lorry", "list", "--type", "git")
    assert done.returncode == 1
    assert "--type and --file are for `lorry add`" in done.stderr
