"""Parts for reading tar archives of strangers in bounded memory."""

from __future__ import annotations

import io
import lzma
import tarfile
from typing import IO, Self

from fabric import bounds

_CHUNK = 1 << 20
_DAMAGED_HEADER = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]  # typeshed knows neither
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
)


class TarEntry(tarfile.TarInfo):
    """A member of a tar archive; members that need unbounded memory are refused."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _DAMAGED_HEADER as error:  # tarfile itself treats it as the archive's end
            raise tarfile.ReadError(str(error)) from None

    # tarfile calls this for each member
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        extended = self.type in (
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        )
        if extended and not 0 <= self.size <= bounds.ARCHIVE_HEADER:
            raise ValueError(
                f"an extended header has {self.size:,} bytes, and the limit is"
                f" {bounds.ARCHIVE_HEADER:,}"
            )
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._sparse()
        made: tarfile.TarInfo | None = super()._proc_member(archive)  # type: ignore[misc]
        return made

    def _sparse(self, member: tarfile.TarInfo | None = None, *_: object) -> None:
        name = short((member or self).name)
        raise ValueError(f"{name!r} is a sparse file, which is not supported")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


class Xz(io.RawIOBase):
    """The unpacked content of an .xz or .lzma file, in bounded memory, unlike `lzma.open`."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._unpacking = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=bounds.ARCHIVE_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while True:
            if self._unpacking.eof:  # another stream may follow, after zeros
                rest = self._unpacking.unused_data.lstrip(b"\0")
                while not rest:
                    if not (rest := self._packed.read(_CHUNK)):
                        return 0
                    rest = rest.lstrip(b"\0")
                self._unpacking = self._new()
            else:
                rest = self._packed.read(_CHUNK) if self._unpacking.needs_input else b""
                if self._unpacking.needs_input and not rest:
                    raise EOFError("it ends early")
            if data := self._unpacking.decompress(rest, len(buffer)):
                buffer[: len(data)] = data
                return len(data)


def short(name: str) -> str:
    """The name of a member for a message."""
    return name if len(name) <= 120 else f"{name[:100]}...{name[-15:]}"
