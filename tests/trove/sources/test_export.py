"""Exported trees hold exactly the bytes of their commit."""

from __future__ import annotations

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from sources_kit import git, repository

from fabric.errors import SourceError
from fabric.jobs import Source
from fabric.trove.configured import open_importer
from fabric.trove.sources.export import MTIME
from fabric.trove.sources.git import Repository
from fabric.trove.sources.git_process import DamagedRepositoryError
from fabric.trove.sources.resolve import Sources

ATTRIBUTES = """\
* text=auto eol=crlf ident
hidden export-ignore
version.txt export-subst
*.dat filter=shout
utf16.txt working-tree-encoding=UTF-16
"""


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, importer=open_importer)


def export(sources: Sources, name: str = "thing") -> Path:
    return sources.export(sources.resolve(f"up:{name}", "main"))


def test_export_ignores_attributes_and_configuration(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: dict[str, str | bytes] = {
        "text.txt": "one\ntwo\n$Id$\n",
        "hidden": "seen",
        "version.txt": "$Format:%H$\n",
        "x.dat": "quiet",
        "utf16.txt": "plain\n",
        "binary": bytes(range(256)) * 1000,
        "empty": "",
    }
    repository(tmp_path / "thing", contents)
    (tmp_path / "thing" / ".gitattributes").write_text(ATTRIBUTES)
    git(tmp_path / "thing", "add", ".gitattributes")
    git(tmp_path / "thing", "commit", "--quiet", "--message", "attributes")
    config = tmp_path / "gitconfig"
    config.write_text('[core]\nautocrlf = true\n[filter "shout"]\nsmudge = tr a-z A-Z\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    tree = export(sources)
    for name, content in contents.items():
        expected = content if isinstance(content, bytes) else content.encode()
        assert (tree / name).read_bytes() == expected, name


def test_export_sets_modes_links_names_and_times(sources: Sources, tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    repository(thing, {"dir/run": "#!", "a b\nc": "odd", "ünï": "ü", os.fsdecode(b"\xff"): "raw"})
    (thing / "dir" / "run").chmod(0o755)
    (thing / "link").symlink_to("dir/run")
    (thing / "dangling").symlink_to("/does/not/exist")
    (thing / "dirlink").symlink_to("dir")
    repository(thing, {"more": "x"})
    before = os.umask(0o077)
    try:
        tree = export(sources)
    finally:
        os.umask(before)
    assert (tree / "a b\nc").read_text() == "odd"
    assert (tree / os.fsdecode(b"\xff")).read_text() == "raw"
    assert (tree / "link").readlink() == Path("dir/run")
    assert (tree / "dangling").readlink() == Path("/does/not/exist")
    assert not (tree / ".git").exists()
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        assert status.st_mtime == MTIME
        if not path.is_symlink():
            wanted = 0o755 if path.is_dir() or path.name == "run" else 0o644
            assert status.st_mode & 0o7777 == wanted, path


def test_export_is_made_once(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tmp_path / "thing", {"a": "1"})
    source = sources.resolve("up:thing", "main")
    path = sources.export(source)
    assert path.name == source.tree
    monkeypatch.setattr(subprocess, "Popen", None)
    assert sources.export(source) == path


def test_export_notices_a_damaged_object(sources: Sources, tmp_path: Path) -> None:
    repository(tmp_path / "thing", {"a": "1" * 100, "b": "2"})
    source = sources.resolve("up:thing", "main")
    mirror = sources.repository("up:thing").path
    sha = git(mirror, "rev-parse", "main:a")
    (pack,) = (mirror / "objects" / "pack").glob("*.pack")
    moved = tmp_path / "pack"
    pack.rename(moved)
    for file in (mirror / "objects" / "pack").iterdir():
        file.unlink()
    with moved.open("rb") as stream:
        subprocess.run(["git", "unpack-objects", "-q"], cwd=mirror, stdin=stream, check=True)
    loose = mirror / "objects" / sha[:2] / sha[2:]
    loose.chmod(0o644)
    other = mirror / "objects" / (there := git(mirror, "rev-parse", "main:b"))[:2] / there[2:]
    loose.write_bytes(other.read_bytes())
    lonely = Repository(mirror.rename(tmp_path / "lonely.git"))
    with pytest.raises(DamagedRepositoryError, match=rf"object {sha} \(a\) is damaged"):
        sources.exports.make(lonely, source.commit, source.tree)
    assert list(sources.exports.directory.iterdir()) == []
    lonely.path.rename(mirror)
    assert (sources.export(source) / "a").read_text() == "1" * 100  # from a new mirror


def wicked(repo: Path, entries: list[tuple[str, bytes, str]]) -> str:
    """Commit a tree that git would never make; return the commit."""

    def add(kind: str, data: bytes) -> str:
        done = subprocess.run(
            ["git", "hash-object", "-t", kind, "-w", "--literally", "--stdin"],
            input=data,
            cwd=repo,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    raw = b"".join(
        f"{mode} {name}\0".encode()
        + bytes.fromhex(add("tree" if mode == "40000" else "blob", data))
        for mode, data, name in entries
    )
    tree = add("tree", raw)
    git(repo, "update-ref", "refs/heads/wicked", git(repo, "commit-tree", "-m", "x", tree))
    return tree


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "../../evil"])
def test_export_rejects_forbidden_names(sources: Sources, tmp_path: Path, name: str) -> None:
    bare = sources.root / "git" / "upstream" / "evil.git"
    Repository(bare).create()
    tree = wicked(bare, [("100644", b"gotcha", name)])
    commit = git(bare, "rev-parse", "wicked")
    with pytest.raises(SourceError, match="forbidden path"):
        sources.export(Source("upstream:evil", "wicked", commit, tree))
    assert not list(tmp_path.rglob("evil"))


def test_export_writes_nothing_through_a_symlink(sources: Sources, tmp_path: Path) -> None:
    bare = sources.root / "git" / "upstream" / "evil.git"
    Repository(bare).create()
    target = tmp_path / "target"
    target.mkdir()
    blob = (
        subprocess.run(
            ["git", "hash-object", "-w", "--stdin"],
            input=b"gotcha",
            cwd=bare,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .strip()
    )
    inner = b"100644 file\0" + bytes.fromhex(blob)
    tree = wicked(bare, [("120000", str(target).encode(), "a"), ("40000", inner, "a")])
    commit = git(bare, "rev-parse", "wicked")
    with pytest.raises(SourceError, match="cannot be exported"):
        sources.export(Source("upstream:evil", "wicked", commit, tree))
    assert list(target.iterdir()) == []


def test_gc_removes_unused_exports(sources: Sources, tmp_path: Path) -> None:
    repository(tmp_path / "thing", {"a": "1" * 1000})
    repository(tmp_path / "other", {"b": "2" * 500})
    thing, other = export(sources), export(sources, "other")
    os.utime(thing, (1, MTIME))
    leftover = thing.parent / ".new-abc"
    leftover.mkdir()
    os.utime(leftover, (1, 1))
    assert sum(sources.gc(3600, dry_run=True).values()) == 1000
    assert thing.exists()
    earlier = thing.parent.with_name("another-boot") / "tree"
    earlier.mkdir(parents=True)
    (earlier / "file").write_text("x" * 10)
    os.utime(earlier, (1, MTIME))
    assert sum(sources.gc(3600, lambda name: nullcontext(name != thing.name)).values()) == 10, (
        "it is in use"
    )
    assert (thing / "a").exists()
    assert sum(sources.gc(3600).values()) == 1000
    assert not earlier.parent.exists()
    assert not thing.exists()
    assert not leftover.exists()
    assert (other / "b").exists()
    assert (export(sources) / "a").exists()


@pytest.mark.parametrize("content", [b"EVIL", b"", b"one longer"])
def test_export_that_changed_on_the_disk_is_made_again(
    sources: Sources, tmp_path: Path, content: bytes
) -> None:
    repository(tmp_path / "thing", {"a": "good", "b": "other"})
    source = sources.resolve("up:thing", "main")
    tree = sources.export(source)
    (tree / "a").write_bytes(content)
    os.utime(tree / "a", (MTIME, MTIME))
    said: list[str] = []
    another = Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, None)
    assert another.export(source, said.append) == tree
    assert (tree / "a").read_text() == "good"
    assert said == [f"{tree} has changed on the disk, at 'a': it is exported again"]


def test_export_is_used_without_reading_it(sources: Sources, tmp_path: Path) -> None:
    repository(tmp_path / "thing", {"a": "good", "b": "other"})
    source = sources.resolve("up:thing", "main")
    tree = sources.export(source)
    inode = tree.stat().st_ino
    another = Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, None)
    for file in (tmp_path / "trove/git").rglob("*.pack"):
        file.unlink()
    assert another.export(source) == tree
    assert tree.stat().st_ino == inode


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_export_with_a_damaged_record_is_compared(
    sources: Sources, tmp_path: Path, content: bytes | None
) -> None:
    repository(tmp_path / "thing", {"a": "good", "b": "other"})
    source = sources.resolve("up:thing", "main")
    tree = sources.export(source)
    inode = tree.stat().st_ino
    record = tmp_path / "trove/tables" / tree.name
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content)
    said: list[str] = []
    another = Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, None)
    assert another.export(source, said.append) == tree
    assert tree.stat().st_ino == inode, "it is as it should be, and stays"
    assert said == []
    assert record.stat().st_size > 60
