"""Packs and reads deterministic archives: the same entries give the same bytes everywhere.

The format is GNU tar (names are bytes, of any length), compressed by zstandard at a fixed level.
Every entry has owner 0:0 without names, and one fixed mtime.  Kept: modes with setuid and sticky
bits, symlinks, hard links within one archive, devices, FIFOs.  Not kept: extended attributes, file
capabilities, access control lists, holes of sparse files.  A number too large for its field of the
header is written in base 256, as by GNU tar.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import zstandard

from fabric import bounds
from fabric.errors import BuildFailed, MachineFault, in_line
from fabric.host.cancel import no_check
from fabric.jobs import Blob

#: mtime of everything unpacked, in seconds since the epoch: as in the old tool's artifacts.
MTIME = 683074800

FILE, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = (b"%d" % n for n in range(7))
_LONG_LINK, _LONG_NAME = b"K", b"L"
_LEVEL = 3
#: An archive of at most this size, in bytes, is packed in memory.
_SMALL = 1 << 20
#: Archives above this size are compressed by two threads.  The number is part of the format, and
#: does not depend on the cores: frames made by threads differ from those made without.
_LARGE = 64 << 20
_PIECE = 1 << 20
#: Most bytes of a symlink's target: the kernel's PATH_MAX, without the zero at its end.
_LONGEST_LINK = 4095


class Entry(NamedTuple):
    """An entry of an archive.  ``name`` is relative, without a leading or trailing slash."""

    name: bytes
    type: bytes
    mode: int = 0o644  # permission bits, 0o7777 at most
    size: int = 0  # of a file's contents, bytes
    link: bytes = b""  # target of a symlink; name of the first of several hard links
    major: int = 0
    minor: int = 0
    uid: int = 0  # other than 0 only for devices
    gid: int = 0
    source: bytes | None = None  # the file with the contents on this machine
    data: bytes = b""  # the contents, when there is no ``source``
    inode: tuple[int, int] | None = None  # (device, number) of a file with several names


class Packed(msgspec.Struct, frozen=True):
    """A finished archive: its blob, and its bytes or the file that has them."""

    blob: Blob
    content: Path | bytes


def pack(entries: Iterable[Entry], spill: Path, check: Callable[[], None] = no_check) -> Packed:
    """Write an archive of ``entries`` in their order; a large one goes to the new file ``spill``.

    ``check`` is called for each entry and each megabyte, and may raise.  BuildFailed for an entry
    that `read` would not give back, MachineFault when a file changes while it is read, OSError
    when the disk is full.
    """
    stream = _stream(entries, check)
    head = bytearray()
    for piece in stream:
        head += piece
        if len(head) > _SMALL:
            break
    else:
        data = zstandard.ZstdCompressor(level=_LEVEL).compress(bytes(head))
        return Packed(Blob.of(data), data)
    return _spill(bytes(head), stream, spill)


def _spill(head: bytes, stream: Iterator[bytes], spill: Path) -> Packed:
    digest = hashlib.sha256()
    size = 0
    with spill.open("xb") as out:  # an existing file may be the store's by now

        def write(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            size += out.write(data)

        # The number of threads depends on the bytes alone, so that it is deterministic.
        pending = [head]
        length = len(head)
        for piece in stream:
            pending.append(piece)
            length += len(piece)
            if length > _LARGE:
                break
        threads = 2 if length > _LARGE else 0
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=threads).compressobj()
        for piece in pending:
            write(compressor.compress(piece))
        pending.clear()
        for piece in stream:
            write(compressor.compress(piece))
        write(compressor.flush())
    return Packed(Blob(digest.hexdigest(), size), spill)


def _stream(entries: Iterable[Entry], check: Callable[[], None]) -> Iterator[bytes]:
    """The uncompressed archive in pieces of about a megabyte."""
    buffer = bytearray()
    for entry in entries:
        check()
        if len(entry.link) > 100:
            buffer += _long(_LONG_LINK, entry.link)
        name = entry.name + b"/" if entry.type == DIRECTORY else entry.name
        if len(name) > 100:
            buffer += _long(_LONG_NAME, name)
        buffer += _proven(entry, name)
        for piece in contents(entry):
            check()
            buffer += piece
            if len(buffer) >= _PIECE:
                yield bytes(buffer)
                buffer.clear()
        buffer += bytes(-entry.size % 512)
        if len(buffer) >= _PIECE:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer + bytes(1024))


def contents(entry: Entry) -> Iterator[bytes]:
    """The contents of an entry.  MachineFault if their size is not that of the entry."""
    if entry.source is None:
        yield entry.data
        return
    with _open(entry.source) as file:
        left = entry.size
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece
        if left or file.read(1):
            raise MachineFault(f"{in_line(entry.source)} changed while it was archived")


def _open(path: bytes) -> BinaryIO:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except PermissionError:  # of mode 4111, for example; the entry has the mode already
        os.chmod(path, 0o400)  # noqa: PTH101 - bytes
        fd = os.open(path, flags)
    return os.fdopen(fd, "rb", buffering=0)


def _proven(entry: Entry, name: bytes) -> bytes:
    """The header of an entry.  BuildFailed unless reading it gives the same entry."""
    try:
        block = header(entry, name)
        long = name if len(name) > 100 else b""
        again = _entry(block, long, entry.link if len(entry.link) > 100 else b"")
    except (MachineFault, OverflowError) as error:
        raise BuildFailed(f"/{in_line(entry.name)} cannot be archived: {error}") from error
    if again[:9] != entry[:9]:  # all that a header says
        raise BuildFailed(f"/{in_line(entry.name)} cannot be archived: it is {entry[:9]}")
    return block


def header(entry: Entry, name: bytes) -> bytes:
    block = bytearray(512)
    block[0 : min(len(name), 100)] = name[:100]
    block[100:108] = _field(entry.mode, 8)
    block[108:116] = _field(entry.uid, 8)
    block[116:124] = _field(entry.gid, 8)
    block[124:136] = _field(entry.size, 12)
    block[136:148] = b"%011o\0" % MTIME
    block[148:156] = b" " * 8
    block[156:157] = entry.type
    block[157 : 157 + min(len(entry.link), 100)] = entry.link[:100]
    block[257:265] = b"ustar  \0"
    if entry.type in (CHARACTER, BLOCK):
        block[329:337] = _field(entry.major, 8)
        block[337:345] = _field(entry.minor, 8)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _field(value: int, width: int) -> bytes:
    """A number in ``width`` bytes.  OverflowError if it is too large for base 256, too."""
    if 0 <= value < 1 << 3 * (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _long(type_: bytes, text: bytes) -> bytes:
    """GNU tar's entry for a name that is too long for a header: its contents are the name."""
    data = text + b"\0"
    entry = Entry(b"././@LongLink", type_, size=len(data))
    return header(entry, entry.name) + data + bytes(-len(data) % 512)


class Contents:
    """The contents of the entry that was read last; contents not read are skipped."""

    def __init__(self, stream: _Buffered, size: int) -> None:
        self._stream = stream
        self.left = size
        self._padding = -size % 512

    def pieces(self) -> Iterator[bytes]:
        """The rest of the contents, in pieces of at most a megabyte."""
        while self.left:
            piece = self._stream.some(self.left)
            self.left -= len(piece)
            yield piece

    def finish(self) -> None:
        for _ in self.pieces():
            pass
        self._stream.exactly(self._padding)


class _Buffered:
    """Buffers a compressed file, so that 512 bytes do not cost a call."""

    def __init__(self, file: BinaryIO) -> None:
        self._reader = zstandard.ZstdDecompressor().stream_reader(file)
        self._buffer = b""
        self._at = 0

    def some(self, most: int) -> bytes:
        """Between 1 and ``most`` bytes.  MachineFault at the end."""
        if self._at == len(self._buffer):
            try:
                self._buffer = self._reader.read(_PIECE)
            except zstandard.ZstdError as error:
                raise MachineFault(f"Damaged archive: {error}") from error
            self._at = 0
            if not self._buffer:
                raise MachineFault("Damaged archive: it ends too early")
        piece = self._buffer[self._at : self._at + most]
        self._at += len(piece)
        return piece

    def exactly(self, count: int) -> bytes:
        if self._at + count <= len(self._buffer):
            self._at += count
            return self._buffer[self._at - count : self._at]
        pieces = []
        while count:
            pieces.append(self.some(count))
            count -= len(pieces[-1])
        return b"".join(pieces)


def read(file: BinaryIO) -> Iterator[tuple[Entry, Contents]]:
    """The entries of an archive made by `pack`.  MachineFault when it is damaged."""
    stream = _Buffered(file)
    name = link = b""
    records = entries = total = 0
    while (block := stream.exactly(512)) != bytes(512):
        try:
            size = _size(block)
            if block[156:157] in (_LONG_NAME, _LONG_LINK):
                entry = None
            else:
                entry, name, link = _entry(block, name, link), b"", b""
        except MachineFault as error:
            raise MachineFault(f"Damaged archive: {error}") from None
        records += 1  # an entry has up to three: two for long names
        entries += entry is not None
        total += size
        if (
            entries > bounds.ARTIFACT_FILES
            or records > 3 * bounds.ARTIFACT_FILES
            or total > bounds.ARTIFACT_BYTES
        ):
            raise MachineFault("Damaged archive: it holds more than an artifact may")
        inside = Contents(stream, size)
        if entry is not None:
            yield entry, inside
        elif block[156:157] == _LONG_NAME:
            name = b"".join(inside.pieces()).rstrip(b"\0")
        else:
            link = b"".join(inside.pieces()).rstrip(b"\0")
        inside.finish()


def _size(block: bytes) -> int:
    """The number of bytes that follow a header.  MachineFault if it is no header."""
    if block[257:262] != b"ustar":
        raise MachineFault("not a tar header where one must be")
    size = _number(block[124:136])
    if block[156:157] in (_LONG_NAME, _LONG_LINK) and size > _LONGEST_LINK + 1:
        raise MachineFault(f"a name of {size} bytes")
    return size


def _entry(block: bytes, name: bytes, link: bytes) -> Entry:
    """The entry of a header, with the long name or link before it.  MachineFault if invalid."""
    name = (name or block[0:100].rstrip(b"\0")).removesuffix(b"/")
    link = link or block[157:257].rstrip(b"\0")
    type_ = block[156:157]
    judge(name, "its path")
    if type_ == HARD_LINK:
        judge(link, "the path it is a link to")
    elif type_ == SYMLINK and not 0 < len(link) <= _LONGEST_LINK:
        raise MachineFault(f"a symlink's target has {len(link)} bytes")
    return Entry(
        name=name,
        type=type_,
        mode=_number(block[100:108]),
        size=_number(block[124:136]),
        link=link,
        major=_number(block[329:337]),
        minor=_number(block[337:345]),
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
    )


def judge(path: bytes, what: str) -> None:
    """MachineFault if a path is too long, or leads out of the tree."""
    if len(path) > bounds.ARTIFACT_PATH:
        raise MachineFault(f"{what} is longer than {bounds.ARTIFACT_PATH} bytes")
    if not {b"", b".", b".."}.isdisjoint(path.split(b"/")) or b"\0" in path:
        raise MachineFault(f"{what} is {os.fsdecode(path)!r}")


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b"\0 ")
    if digits.strip(b"01234567"):
        raise MachineFault("a number in its header is none")
    return int(digits or b"0", 8)
