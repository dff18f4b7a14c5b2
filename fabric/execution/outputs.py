"""Unpacks the tar file of a step's DESTDIR, which is a stranger's."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fabric import bounds
from fabric.building import archive
from fabric.building.archive import Entry
from fabric.building.tree import Clash, Unpacker
from fabric.errors import NO_ROOM, BuildFailed, MachineFault, in_line
from fabric.host.tar_streams import TarEntry
from fabric.reapi.connection import ServerFault

_PIECE = 1 << 20
_TYPES = {
    tarfile.REGTYPE: archive.FILE,
    tarfile.AREGTYPE: archive.FILE,
    tarfile.CONTTYPE: archive.FILE,
    tarfile.LNKTYPE: archive.HARD_LINK,
    tarfile.SYMTYPE: archive.SYMLINK,
    tarfile.DIRTYPE: archive.DIRECTORY,
    tarfile.FIFOTYPE: archive.FIFO,
    tarfile.CHRTYPE: archive.CHARACTER,
    tarfile.BLKTYPE: archive.BLOCK,
}


class _File(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Skip the rest."""
        for _ in self._pieces:
            pass


def unpack(pieces: Iterator[bytes], into: Path) -> None:
    """Unpack the tar file that consists of ``pieces`` into an empty directory; read all of it.

    Owners and times are dropped, as `fabric.building.archive` drops them.  ServerFault if it is
    damaged; BuildFailed for what no artifact may hold.
    """
    file = _File(pieces)
    unpacker = Unpacker(into)
    count = size = 0
    try:
        with tarfile.open(
            fileobj=io.BufferedReader(file, _PIECE), mode="r|", tarinfo=TarEntry,
            bufsize=_PIECE, encoding="utf-8", errors="surrogateescape",
        ) as tar:  # fmt: skip
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                count += 1
                size += member.size
                if count > bounds.ARTIFACT_FILES or size > bounds.ARTIFACT_BYTES:
                    raise BuildFailed("DESTDIR has more files, or more bytes, than an artifact may")
                entry = _entry(member)
                if entry is None:
                    continue
                content = tar.extractfile(member) if entry.type == archive.FILE else None
                unpacker.put(entry, _contents(content), "")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, Clash, MachineFault) as error:
        raise _damaged(error) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise _damaged(error) from error  # a link to nothing, for example
    unpacker.finish()
    file.drain()


def _contents(file: IO[bytes] | None) -> Iterator[bytes]:
    while file is not None and (piece := file.read(_PIECE)):
        yield piece


def _damaged(error: Exception) -> ServerFault:
    if isinstance(error, ServerFault):
        return error
    return ServerFault(f"The result of the step is no tar file of a directory: {error}")


def _entry(member: tarfile.TarInfo) -> Entry | None:
    """The entry of a member; None for the root."""
    name = _path(member.name)
    if not name:
        return None
    type_ = _TYPES.get(member.type)
    if type_ is None:
        raise ValueError(f"{name!r} is of type {member.type!r}")
    if type_ in (archive.CHARACTER, archive.BLOCK):
        raise BuildFailed(
            f"/{in_line(name)} is a device, and no artifact may hold one: the commands that make it"
            " must remove it (chunks have `devices` for devices)"
        )
    link = b""
    if type_ == archive.HARD_LINK:
        link = _path(member.linkname)
    elif type_ == archive.SYMLINK:
        link = _bytes(member.linkname)
    return Entry(name, type_, member.mode & 0o7777, link=link)


def _path(text: str) -> bytes:
    """A path in the tree.  ValueError if it leads out of it, or is too long."""
    path = _bytes(text).strip(b"/").removeprefix(b"./")
    if path == b".":
        return b""
    archive.judge(path, "its path")
    return path


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
