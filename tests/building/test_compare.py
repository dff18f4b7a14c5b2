"""Comparisons of the files in archives."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from fabric.building.archive import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    Entry,
    pack,
)
from fabric.building.compare import File, FileChange, Tree, compare
from fabric.errors import MachineFault


def file(name: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    return Entry(name.encode(), FILE, mode, len(data), data=data)


def link(name: str, to: str) -> Entry:
    return Entry(name.encode(), SYMLINK, 0o777, link=to.encode())


def tree(folder: Path, **artifacts: list[Entry]) -> Tree:
    made = Tree()
    for name, entries in artifacts.items():
        content = pack(entries, folder / f"spill-{name}").content
        assert isinstance(content, bytes)
        made.add(name, io.BytesIO(content))
    return made


def changes(old: Tree, new: Tree) -> dict[str, tuple[str, ...]]:
    return {one.path: one.what for one in compare(old, new)}


def test_compare_reports_every_kind_of_change(tmp_path: Path) -> None:
    device = Entry(b"dev", CHARACTER, 0o666, major=1, minor=3)
    old = [
        Entry(b"dir", DIRECTORY, 0o755), Entry(b"fifo", FIFO, 0o644), device,
        file("content", b"old"), file("gone"), file("mode"), file("same", b"same"),
        file("size", b"12"), link("target", "a"), link("to-file", "a"), file("to-link", b"data"),
    ]  # fmt: skip
    new = [
        Entry(b"dir", DIRECTORY, 0o700), Entry(b"fifo", DIRECTORY, 0o644),
        device._replace(minor=5), file("come", b"come"),
        file("content", b"new"), file("mode", mode=0o4755), file("same", b"same"),
        file("size", b"123"), link("target", "b"), file("to-file", b"data"), link("to-link", "a"),
    ]  # fmt: skip
    assert changes(tree(tmp_path, a=old), tree(tmp_path, a=new)) == {
        "/come": ("added",),
        "/content": ("content",),
        "/dev": ("target",),
        "/dir": ("mode",),
        "/fifo": ("type",),
        "/gone": ("gone",),
        "/mode": ("mode",),
        "/size": ("content",),
        "/target": ("target",),
        "/to-file": ("type",),
        "/to-link": ("type",),
    }
    block = tree(tmp_path, a=[device._replace(type=BLOCK)])
    assert changes(tree(tmp_path, a=[device]), block) == {"/dev": ("type",)}
    owned = tree(tmp_path, a=[device._replace(uid=7)])
    assert changes(tree(tmp_path, a=[device]), owned) == {"/dev": ("target",)}


def test_compare_reports_both_sides(tmp_path: Path) -> None:
    before = tree(tmp_path, a=[file("x", b"old")])
    after = tree(tmp_path, b=[file("x", b"newer", 0o755)])
    digests = [hashlib.sha256(data).hexdigest() for data in (b"old", b"newer")]
    assert list(compare(before, after)) == [
        FileChange(
            "/x",
            File("file", "644", 3, digests[0], "", "a"),
            File("file", "755", 5, digests[1], "", "b"),
            ("content", "mode", "artifact"),
        )
    ]
    assert (before.bytes, after.bytes) == (3, 5)


def test_compare_follows_hard_links(tmp_path: Path) -> None:
    """A file with two names changes under both, and counts once."""

    def names(data: bytes) -> Tree:
        other = Entry(b"b", HARD_LINK, 0o644, link=b"a")
        return tree(tmp_path, x=[file("a", data), other])

    assert changes(names(b"1"), names(b"2")) == {"/a": ("content",), "/b": ("content",)}
    assert names(b"12").bytes == 2
    apart = tree(tmp_path, x=[file("a", b"1"), file("b", b"1")])
    assert changes(names(b"1"), apart) == {}


def test_compare_of_files_that_move_between_artifacts(tmp_path: Path) -> None:
    both = Entry(b"usr", DIRECTORY, 0o755)
    one = tree(tmp_path, bins=[both, file("usr/x")], misc=[both, file("usr/y")])
    other = tree(tmp_path, bins=[both], misc=[both, file("usr/x"), file("usr/y")])
    assert changes(one, other) == {"/usr/x": ("artifact",)}
    renamed = tree(tmp_path, bins=[both, file("usr/x")], rest=[both, file("usr/y")])
    assert changes(one, renamed) == {"/usr/y": ("artifact",)}
    fewer = tree(tmp_path, misc=[both, file("usr/y")])
    assert changes(one, fewer) == {"/usr/x": ("gone",)}


def test_compare_rejects_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(MachineFault, match="it has a link to /a, but not that"):
        tree(tmp_path, x=[Entry(b"b", HARD_LINK, 0o644, link=b"a")])
    with pytest.raises(MachineFault, match="an entry of type b'9'"):
        tree(tmp_path, x=[Entry(b"b", b"9", 0o644)])
    content = pack([file("a", b"1")], tmp_path / "spill").content
    assert isinstance(content, bytes)
    with pytest.raises(MachineFault, match="Damaged archive"):
        Tree().add("x", io.BytesIO(content[:-9]))
