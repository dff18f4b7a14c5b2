"""Detects changes of trees on a disk by a recorded table of their inodes.

Reading a tree of 30,000 files takes as long as making it again; reading its inodes takes a tenth
of a second.  So the names, modes, sizes, times and inode numbers of a new tree are recorded, and
the tree is trusted while they are unchanged.  Otherwise it is made again beside it and compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from pathlib import Path

import msgspec

from fabric.host.files import put, recall, sealed, unsealed

_CHUNK = 256 * 1024


class Table(msgspec.Struct, frozen=True):
    """Digests of the inodes of a tree."""

    base: bytes  # digest of everything but ctimes
    changes: bytes  # digest of the files' ctimes
    names: int  # sum of the link counts of its files

    def same(self, other: Table) -> bool:
        """Whether ``other`` is a table of the same, unchanged tree.

        A new link to a file, in a merged tree, changes the file's ctime and link count.
        """
        return self.base == other.base and (
            self.changes == other.changes or self.names != other.names
        )


class Record(msgspec.Struct, frozen=True):
    """The table of a tree, with data of its maker."""

    table: Table
    about: bytes = b""
    origin: bytes = b""  # digest of what it was made from; empty: not recorded


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_row = struct.Struct("<QqqQ").pack


def table_of(tree: Path) -> Table:
    """The table of a tree.  OSError if it cannot be read."""
    base, changes, names = hashlib.sha256(), hashlib.sha256(), 0
    top = os.fsencode(tree)
    info = os.lstat(top)
    base.update(_row(info.st_mode, info.st_mtime_ns, 0, info.st_ino))
    pending = [b""]
    while pending:
        parent = pending.pop()
        rows, times = [parent], []
        for entry, info in _entries(top + b"/" + parent):
            size = info.st_size
            if stat.S_ISDIR(info.st_mode):
                size = 0  # depends on the file system
                pending.append(parent + entry.name + b"/")
            else:
                times.append(info.st_ctime_ns)
                names += info.st_nlink
            rows.append(_row(info.st_mode, info.st_mtime_ns, size, info.st_ino) + entry.name)
        base.update(b"\0".join(rows))
        changes.update(struct.pack(f"<{len(times)}q", *times))
    return Table(base.digest(), changes.digest(), names)


def _entries(directory: bytes) -> list[tuple[os.DirEntry[bytes], os.stat_result]]:
    """The entries of a directory, by name; none if its mode forbids its owner to list it."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry, entry.stat(follow_symlinks=False)) for entry in entries]
    except PermissionError:
        return []
    return sorted(found, key=lambda one: one[0].name)


def read_record(file: Path) -> Record | None:
    """A record; None if it is missing or damaged."""
    content = unsealed(recall(file))
    if content is not None:
        with contextlib.suppress(msgspec.DecodeError):
            return _decode(content)
    return None


def write_record(file: Path, record: Record, scratch: Path) -> None:
    """Write a record; ``scratch`` is a temporary file on the same file system."""
    scratch.write_bytes(sealed(_encode(record)))
    put(scratch, file)


def difference(one: Path, other: Path, *, times: bool = True) -> str:
    """The first path at which two trees differ, "" if there is none.

    Without ``times``, modification times are not compared.
    """
    pending = [b""]
    tops = os.fsencode(one), os.fsencode(other)
    while pending:
        parent = pending.pop()
        here, there = (
            {entry.name: (entry, info) for entry, info in _entries(top + b"/" + parent)}
            for top in tops
        )
        for name in sorted(here.keys() | there.keys()):
            path = parent + name
            if name not in here or name not in there or _differ(here[name], there[name], times):
                return os.fsdecode(path)
            if stat.S_ISDIR(here[name][1].st_mode):
                pending.append(path + b"/")
    return ""


def _differ(
    one: tuple[os.DirEntry[bytes], os.stat_result],
    other: tuple[os.DirEntry[bytes], os.stat_result],
    times: bool,
) -> bool:
    (left, here), (right, there) = one, other
    if here.st_mode != there.st_mode or (times and here.st_mtime_ns != there.st_mtime_ns):
        return True
    if stat.S_ISLNK(here.st_mode):
        return os.readlink(left.path) != os.readlink(right.path)  # noqa: PTH115 - bytes
    return stat.S_ISREG(here.st_mode) and (
        here.st_size != there.st_size or not _equal(left.path, right.path)
    )


def _equal(one: bytes, other: bytes) -> bool:
    """Whether two files have the same content; true for files that cannot be read."""
    try:
        with open(one, "rb", 0) as here, open(other, "rb", 0) as there:  # noqa: PTH123
            while True:
                piece = here.read(_CHUNK)
                if piece != there.read(_CHUNK):
                    return False
                if not piece:
                    return True
    except PermissionError:  # the modes are equal, and forbid even the owner to read
        return True
