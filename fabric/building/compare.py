"""Compares the files in archives, which are read as streams.

In memory is a short record of each path: about 300 bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from fabric.building import archive
from fabric.building.archive import Contents, Entry
from fabric.errors import MachineFault, in_line

_Bytes = bytes  # in a class with a field of that name
_TYPES = {
    archive.FILE: "file",
    archive.SYMLINK: "symlink",
    archive.CHARACTER: "character device",
    archive.BLOCK: "block device",
    archive.DIRECTORY: "directory",
    archive.FIFO: "FIFO",
}
#: Type, mode, size and digest of an entry, and the number of its archive.  The target of a symlink,
#: or the numbers of a device, follow.
_HEAD = struct.Struct(">cHQ32sH")


class File(msgspec.Struct, frozen=True):
    """One path of an archive."""

    type: str
    mode: str  # octal digits
    size: int  # of a file's content
    sha256: str  # of a file's content
    target: str  # of a symlink; the numbers of a device
    artifact: str


class FileChange(msgspec.Struct, frozen=True):
    """The difference between two trees at one path; ``old`` or ``new`` is None without a file."""

    path: str  # from the root
    old: File | None
    new: File | None
    what: tuple[str, ...]  # "added", "gone", or any of "content", "mode", "target" ...


class Tree(msgspec.Struct):
    """The files of some archives."""

    artifacts: list[str] = []
    files: dict[bytes, bytes] = {}  # path -> _HEAD and what follows
    bytes: int = 0  # of all contents; a file with several names counts once

    def add(self, artifact: str, file: BinaryIO) -> None:
        """Read an archive.  MachineFault if it is damaged."""
        for entry, contents in archive.read(file):
            self.files[entry.name] = self._record(entry, contents)
        self.artifacts.append(artifact)

    def listing(self) -> Iterator[tuple[str, File]]:
        """The files by path from the root, in byte order."""
        for path in sorted(self.files):
            yield f"/{in_line(path)}", _file(self.files[path], self.artifacts)

    def _record(self, entry: Entry, contents: Contents) -> _Bytes:
        if entry.type == archive.HARD_LINK:  # another name of a file before it
            if entry.link not in self.files:
                lacking = in_line(entry.link)
                raise MachineFault(f"Damaged archive: it has a link to /{lacking}, but not that")
            return self.files[entry.link]
        if entry.type not in _TYPES:
            raise MachineFault(f"Damaged archive: an entry of type {entry.type!r}")
        digest = hashlib.sha256()
        for piece in contents.pieces():
            digest.update(piece)
        self.bytes += entry.size
        tail = entry.link
        if entry.type in (archive.CHARACTER, archive.BLOCK):
            tail = b"%d:%d, owner %d:%d" % (entry.major, entry.minor, entry.uid, entry.gid)
        mode, number = entry.mode & 0xFFFF, len(self.artifacts)
        return _HEAD.pack(entry.type, mode, entry.size, digest.digest(), number) + tail


def compare(old: Tree, new: Tree) -> Iterator[FileChange]:
    """The paths that differ, in byte order."""
    alike = old.artifacts == new.artifacts
    for path in sorted(old.files.keys() | new.files.keys()):
        before, after = old.files.get(path), new.files.get(path)
        if before == after and alike:
            continue
        one = None if before is None else _file(before, old.artifacts)
        other = None if after is None else _file(after, new.artifacts)
        if one != other:
            yield FileChange(f"/{in_line(path)}", one, other, tuple(_what(one, other)))


def _file(record: _Bytes, artifacts: list[str]) -> File:
    type_, mode, size, digest, number = _HEAD.unpack_from(record)
    target = record[_HEAD.size :].decode("utf-8", "surrogateescape")
    sha256 = digest.hex() if type_ == archive.FILE else ""
    # a directory may be in several archives
    artifact = "" if type_ == archive.DIRECTORY else artifacts[number]
    return File(_TYPES[type_], f"{mode:o}", size, sha256, target, artifact)


def _what(old: File | None, new: File | None) -> Iterator[str]:
    if old is None or new is None:
        yield "gone" if new is None else "added"
        return
    if old.type != new.type:
        yield "type"
    elif old.target != new.target:
        yield "target"
    elif old.sha256 != new.sha256:
        yield "content"
    if old.mode != new.mode and "symlink" not in (old.type, new.type):
        yield "mode"
    if old.artifact != new.artifact and "directory" not in (old.type, new.type):
        yield "artifact"
