"""Unpacks Debian's binary packages, in the format of deb(5), without dpkg.

Packages are untrusted: their contents are bounded, and every mistake in one is a BuildFailed with
the names of the package and the member.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

import zstandard

from fabric import bounds
from fabric.building import archive
from fabric.building.archive import Entry
from fabric.building.log import Log
from fabric.building.tree import Unpacker, follow
from fabric.errors import BuildFailed, in_line
from fabric.host.files import read_regular
from fabric.host.tar_streams import TarEntry, Xz, short

#: The file of a source tree that lists its packages, in the order of unpacking.
TABLE = "packages.tsv"
#: A line of it: name, version, architecture, SHA-256, size, file name.
_LINE = re.compile(r"(?:[^\t]+\t){5}([a-z0-9][A-Za-z0-9.+~%_-]*\.deb)")
#: What readers of damaged or malicious packages raise.
ERRORS = (
    tarfile.TarError,
    zstandard.ZstdError,
    lzma.LZMAError,
    zlib.error,
    gzip.BadGzipFile,
    struct.error,
    EOFError,
    RuntimeError,  # too many headers in a row
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)
_CHUNK = 1 << 20
_TYPES = {
    tarfile.DIRTYPE: archive.DIRECTORY,
    tarfile.SYMTYPE: archive.SYMLINK,
    tarfile.LNKTYPE: archive.HARD_LINK,
    tarfile.FIFOTYPE: archive.FIFO,
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), archive.FILE),
}


def unpack(tree: Path, to: Path, log: Log, check: Callable[[], None]) -> None:
    """Unpack the packages that the table in ``tree`` lists, in its order, into ``to``.

    A directory of a package does not replace a symlink to a directory: ``/bin`` of one package may
    be a link to ``usr/bin`` of another.  ``check`` is called repeatedly, and may raise.
    """
    unpacker = Unpacker(to, check)
    tally = _Tally()
    for name in _listed(tree):
        log.write(name)
        with _open(tree / name) as file:
            package = _Package(name, unpacker, tally)
            package.unpack(file, check)
    unpacker.finish()


def _listed(tree: Path) -> list[str]:
    """The file names of the packages."""
    try:
        lines = read_regular(tree / TABLE, bounds.PACKAGES_TABLE).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildFailed(f"{TABLE}: {getattr(error, 'strerror', error)}") from None
    names = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise BuildFailed(
                f"{TABLE}:{number}: not a line of a lorry of type debian-packages: name, version,"
                " architecture, SHA-256, size and file name, with tabs between them"
            )
        names.append(match[1])
    return names


def _open(path: Path) -> BinaryIO:
    """A package in a source tree, which is a file, and no link to one elsewhere."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        found = 0
    if not stat.S_ISREG(found):
        raise BuildFailed(f"{TABLE} lists {path.name}, which is not a file of the source tree")
    return path.open("rb")


class _Tally:
    """Counts the members of all packages of a chunk, and their bytes."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0

    def add(self, size: int) -> None:
        """ValueError past a bound."""
        self.files += 1
        self.bytes += size
        if self.files > bounds.ARTIFACT_FILES:
            raise ValueError(
                f"with it the packages have more than {bounds.ARTIFACT_FILES:,} files, and an"
                " artifact may not"
            )
        if self.bytes > bounds.ARTIFACT_BYTES:
            raise ValueError(
                f"with it the files have {self.bytes:,} bytes, and an artifact may have"
                f" {bounds.ARTIFACT_BYTES:,}"
            )


class _Package:
    """One package, while it is unpacked."""

    def __init__(self, name: str, unpacker: Unpacker, tally: _Tally) -> None:
        self._name = name
        self._unpacker = unpacker
        self._tally = tally
        self._member = ""  # the one being read

    def unpack(self, file: BinaryIO, check: Callable[[], None]) -> None:
        """Unpack all its files.  BuildFailed if that cannot be done."""
        try:
            members = members_of(file)
            for info in members:
                check()
                self._member = info.name
                entry = self._entry(info)
                if entry is not None:
                    self._put(entry, members.contents(info))
        except ERRORS as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> BuildFailed:
        at = f" at {in_line(short(self._member))}" if self._member else ""
        return BuildFailed(
            f"{self._name}: this package cannot be unpacked{at}:"
            f" {in_line(str(error) or type(error).__name__)}"
        )

    def _entry(self, info: tarfile.TarInfo) -> Entry | None:
        """A member as an entry; None for the root.  ValueError if no artifact may hold it."""
        type_ = _TYPES.get(info.type)
        if type_ is None:
            if info.isdev():
                raise ValueError("it is a device, and a chunk makes those by `devices`")
            raise ValueError(f"its type is {info.type!r}, which no package has")
        size = info.size if type_ == archive.FILE else 0
        if size < 0:
            raise ValueError(f"it has {size} bytes")
        self._tally.add(size)
        path = _path(info.name)
        if not path:
            return None
        link = b""
        if type_ == archive.HARD_LINK:
            link = _path(info.linkname)
        elif type_ == archive.SYMLINK:
            link = _bytes(info.linkname)
            if not 0 < len(link) < bounds.LINK_TARGET or b"\0" in link:
                raise ValueError("it is a symbolic link, and its target is no path")
        mode = 0o777 if type_ == archive.SYMLINK else info.mode & 0o7777
        return Entry(path, type_, mode, size, link)

    def _put(self, entry: Entry, pieces: Iterator[bytes]) -> None:
        if entry.type == archive.HARD_LINK:
            entry = self._linked(entry)
        try:
            self._unpacker.put(entry, pieces, self._name)
        except OSError as error:
            # a path is longer when its links are followed
            if error.errno in (errno.ENAMETOOLONG, errno.EMLINK):
                raise self._failed(ValueError(error.strerror)) from None
            raise

    def _linked(self, entry: Entry) -> Entry:
        """A hard link whose target is resolved; a symlink if the target is one."""
        links = self._unpacker.links
        target = follow(entry.link, links, last=False)
        if target == follow(entry.name, links, last=False) or target not in self._unpacker.files:
            where = in_line(short(os.fsdecode(entry.link)))
            raise ValueError(f"it is a hard link to /{where}, and no file before it has that name")
        if target in links:
            return entry._replace(type=archive.SYMLINK, mode=0o777, link=links[target])
        return entry._replace(link=target)


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _path(name: str) -> bytes:
    """A normalized path; empty for the root.  ValueError if no artifact may hold it."""
    raw = _bytes(name)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if raw.startswith(b"/") or b".." in parts:
        raise ValueError(f"{in_line(short(name))} leads out of the package")
    if b"\0" in raw:
        raise ValueError("there is a zero byte in its name")
    path = b"/".join(parts)
    if len(path) > bounds.ARTIFACT_PATH:
        raise ValueError(f"its path has more than {bounds.ARTIFACT_PATH:,} bytes")
    return path


# -- the format ------------------------------------------------------------------------------


class _TarMember(TarEntry):
    """A member of a package; the mark at the end of the archive may not be missing."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # unknown to typeshed
            raise EOFError("it ends early") from None


class Members:
    """The members of an archive in a package, each read before the next one."""

    def __init__(self, data: IO[bytes]) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - it ends with the file
            fileobj=data, mode="r|", tarinfo=_TarMember, encoding="utf-8", errors="surrogateescape"
        )

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while (info := self._tar.next()) is not None:
            self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them
            yield info

    def contents(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """The contents of the member that was read last.  EOFError if they end early."""
        content = self._tar.extractfile(info) if info.size else None
        left = info.size if content is not None else 0
        while content is not None and left:
            piece = content.read(min(left, _CHUNK))
            if not piece:
                raise EOFError("it ends early")
            left -= len(piece)
            yield piece


def members_of(file: BinaryIO, which: bytes = b"data.tar") -> Members:
    """The archive of the files of a package, or of what it says of itself (``control.tar``).

    One of `ERRORS` if there is none, or it is damaged, here and while it is read.
    """
    if file.read(8) != b"!<arch>\n":
        raise ValueError("it is not a Debian package")
    for number in range(bounds.DEB_MEMBERS):
        head = file.read(60)
        if len(head) < 60:
            raise EOFError("it ends early")
        name, digits = head[:16].rstrip(b" ").rstrip(b"/"), head[48:58].rstrip(b" ")
        if head[58:] != b"`\n" or not digits.isdigit():
            raise ValueError("it is not a Debian package")
        part = _Part(file, int(digits))
        if number == 0:
            version = part.read(4)
            if name != b"debian-binary" or version[:2] != b"2.":
                raise ValueError("it is not a Debian package of version 2")
        elif name.startswith(which):
            return Members(_plain(name[len(which) :], io.BufferedReader(part, _CHUNK)))
        part.skip()
    raise ValueError(f"none of its first {bounds.DEB_MEMBERS} members is {which.decode()}")


class _Part(io.RawIOBase):
    """A member of a package, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self._end = file.tell() + size + size % 2
        if self._end - size % 2 > os.fstat(file.fileno()).st_size:
            raise EOFError("it ends early")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self._file.read(min(len(buffer), self._left))
        self._left -= len(piece)
        buffer[: len(piece)] = piece
        return len(piece)

    def skip(self) -> None:
        """Go on to the next member."""
        self._file.seek(self._end)


def _plain(suffix: bytes, packed: io.BufferedReader) -> IO[bytes]:
    """The unpacked archive."""
    if suffix == b"":
        return packed
    if suffix == b".xz":
        return io.BufferedReader(Xz(packed), _CHUNK)
    if suffix == b".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        return io.BufferedReader(cast(io.RawIOBase, reader), _CHUNK)
    if suffix == b".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=packed, mode="rb"))
    raise ValueError(
        f"its files are packed as {os.fsdecode(suffix)!r}; known are .xz, .zst and .gz"
    )
