"""Detects changes of trees on a disk by a recorded table of their inodes.

Reading a tree of 30,000 files takes as long as making it again; reading its inodes takes a tenth
of a second.  Therefore a new tree is recorded, and trusted while its table is unchanged: names,
modes, sizes, times and inode numbers.  If the table differs, the tree is made again beside it and
compared.
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
    """What a tree looks like, in short."""

    base: bytes  # digest of all but times of change
    changes: bytes  # digest of the files' times of change
    names: int  # how many names its files have, be they in this tree or not

    def same(self, other: Table) -> bool:
        """Whether the tree of ``other`` is this one, unchanged.

        To give a file another name, in a merged tree, changes its time of change.
        """
        return self.base == other.base and (
            self.changes == other.changes or self.names != other.names
        )


class Record(msgspec.Struct, frozen=True):
    """The table of a tree, with what its maker wants to know of it."""

    table: Table
    about: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_row = struct.Struct("<QqqQ").pack


def table_of(tree: Path) -> Table:
    """Look at all that is in a tree.  OSError if it cannot be seen."""
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
                size = 0  # the file system's own affair
                pending.append(parent + entry.name + b"/")
            else:
                times.append(info.st_ctime_ns)
                names += info.st_nlink
            rows.append(_row(info.st_mode, info.st_mtime_ns, size, info.st_ino) + entry.name)
        base.update(b"\0".join(rows))
        changes.update(struct.pack(f"<{len(times)}q", *times))
    return Table(base.digest(), changes.digest(), names)


def _entries(directory: bytes) -> list[tuple[os.DirEntry[bytes], os.stat_result]]:
    """What is in a directory, by name; nothing if its own mode keeps even us, its owner, out."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry, entry.stat(follow_symlinks=False)) for entry in entries]
    except PermissionError:
        return []
    return sorted(found, key=lambda one: one[0].name)


def read_record(file: Path) -> Record | None:
    """A record; None if there is none, or it is damaged."""
    content = unsealed(recall(file))
    if content is not None:
        with contextlib.suppress(msgspec.DecodeError):
            return _decode(content)
    return None


def write_record(file: Path, record: Record, scratch: Path) -> None:
    """Write a record, by way of the file ``scratch`` beside it."""
    scratch.write_bytes(sealed(_encode(record)))
    put(scratch, file)


def difference(one: Path, other: Path, *, times: bool = True) -> str:
    """The first path that is not the same in two trees, "" if there is none.

    Without ``times``, what differs in its time alone is the same.
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
    """Whether two files of ours have the same content."""
    try:
        with open(one, "rb", 0) as here, open(other, "rb", 0) as there:  # noqa: PTH123
            while True:
                piece = here.read(_CHUNK)
                if piece != there.read(_CHUNK):
                    return False
                if not piece:
                    return True
    except PermissionError:  # of a mode that keeps us out, too
        return True
