"""Provides the source tree of a build; changes by the build affect no other.

A tree of some size is an overlay: the exported sources are the lower side, changes go to the upper
side, on disk.  A tree of a few files is copied, which is quicker.
"""

# ruff: noqa: PTH101, PTH102, PTH115, PTH123, PTH211
from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.building import overlay
from fabric.building.conditions import reorder
from fabric.building.merge import Merger
from fabric.building.workspace import Workspace
from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress, silent
from fabric.jobs import Source

#: A tree of at most so many entries and bytes is copied.
_FEW, _LITTLE = 24, 1 << 20
#: Entries copied between two looks whether the build is cancelled.
_AT_ONCE = 1000

#: The entries of a tree: (path, mode).
Entries = tuple[tuple[str, int], ...]


class SourceTree(msgspec.Struct, frozen=True):
    """A source tree that can be bound into a sandbox."""

    path: Path
    launcher: tuple[str, ...]  # the start of the command line in which ``path`` is the tree
    origin: Path | None = None  # the exported tree that it was made of


def prepare(
    source: Source | None,
    workspace: Workspace,
    scratch: Path,
    cancel: CancelToken,
    report: Progress = silent,
    *,
    reordered: bool = False,
) -> SourceTree:
    """The tree of ``source`` in ``scratch``; changes by a failed attempt stay.

    ``report`` is called for trees that have changed on the disk, and are made again.  With
    ``reordered``, directories list their files in another order (`fabric.building.conditions`).
    """
    up = scratch / "up"
    fresh = made(up) or not (scratch / "inst").exists()
    up.chmod(0o755)
    if source is None:
        return SourceTree(up, ())
    tree = exported(source, workspace, cancel, report)
    mtime = tree.stat().st_mtime_ns
    entries = None if reordered else _few_entries(str(tree))
    if entries is None:
        lower = [tree]
        if reordered and made(scratch / "order"):
            reorder(lower, scratch / "order", cancel.check)
            lower.insert(0, scratch / "order")
        launcher = overlay.writable(lower, workspace.session, scratch)
    elif fresh:
        _copy(entries, tree, up, mtime)
    os.utime(up, ns=(mtime, mtime))
    if entries is None:
        return SourceTree(scratch / "build", launcher, tree)
    return SourceTree(up, (), tree)


def made(directory: Path) -> bool:
    """Make a directory; False if it exists."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


@functools.lru_cache(maxsize=1000)
def _few_entries(tree: str) -> Entries | None:
    """The entries of a tree, directories before their contents; None if there are many.

    Cached, since the tree of a path never changes.
    """
    return _entries(tree, _FEW, _LITTLE)


def copy(tree: Path, to: Path, cancel: CancelToken) -> None:
    """Copy an exported tree into the empty directory ``to``; all gets the tree's mtime."""
    entries = _entries(str(tree), bounds.TREE_ENTRIES, bounds.SOURCE_SIZE)
    assert entries is not None, "an exported tree is within the bounds"
    for start in range(0, len(entries), _AT_ONCE):
        cancel.check()
        _copy(entries[start : start + _AT_ONCE], tree, to, tree.stat().st_mtime_ns)


def _entries(tree: str, most: int, largest: int) -> Entries | None:
    """The entries of a tree, directories before their contents; None if there are more."""
    found: list[tuple[str, int]] = []
    size = 0
    pending = [""]
    while pending:
        parent = pending.pop()
        with os.scandir(f"{tree}/{parent}") as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                path = parent + entry.name
                found.append((path, info.st_mode))
                if stat.S_ISDIR(info.st_mode):
                    pending.append(f"{path}/")
                else:
                    size += info.st_size
                if len(found) > most or size > largest:
                    return None
    return tuple(found)


def _copy(entries: Entries, tree: Path, to: Path, mtime: int) -> None:
    """Copy those entries of ``tree``; all get the mtime ``mtime``."""
    for path, mode in entries:
        source, target = f"{tree}/{path}", f"{to}/{path}"
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
        else:
            with open(source, "rb", 0) as old, open(target, "xb", 0) as new:
                while os.sendfile(new.fileno(), old.fileno(), None, _LITTLE):
                    pass
                os.fchmod(new.fileno(), stat.S_IMODE(mode))
    for path, mode in reversed(entries):
        target = f"{to}/{path}"
        if stat.S_ISDIR(mode):
            os.chmod(target, stat.S_IMODE(mode))
        os.utime(target, ns=(mtime, mtime), follow_symlinks=False)


def exported(source: Source, workspace: Workspace, cancel: CancelToken, report: Progress) -> Path:
    """The exported tree of a source, with its submodules, held until this build ends."""
    top = _held(source, workspace, report)
    parts = list(_submodules(source, b""))
    if not parts:
        return top

    def make(into: Path) -> None:
        merger = Merger(into)
        merger.lay(top)
        for path, module in parts:
            merger.lay(_held(module, workspace, report), at=path)
        merger.finish(top.stat().st_mtime)

    names = ["sources", source.tree, [(path, module.tree) for path, module in parts]]
    return workspace.layers.made(names, make, cancel, report)


def _held(source: Source, workspace: Workspace, report: Progress) -> Path:
    """The exported tree of a source, held until this build ends."""
    workspace.session.hold(source.tree)
    return workspace.sources.export(source, report)


def _submodules(source: Source, below: bytes) -> Iterator[tuple[bytes, Source]]:
    """All submodules, also nested ones, each before its own submodules."""
    for name, module in source.submodules:
        path = below + name.encode("utf-8", "surrogateescape")
        yield path, module
        yield from _submodules(module, path + b"/")
