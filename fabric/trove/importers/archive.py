"""Reading tarballs and zip files, without ever unpacking them on the disk."""

from __future__ import annotations

import contextlib
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from fabric.errors import SourceError
from fabric.trove.importers.commit import Member, Tree

#: What the readers raise about archives that are damaged or none.
_TROUBLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zstandard.ZstdError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # a zip file's exotic compression
)


def read(file: Path, shown: str) -> Tree:
    """The files of an archive: tar (plain, gz, bz2, xz, zst) or zip.

    Its kind is told from its content.  Directories, devices and ``.git`` are left out, as git
    cannot hold them.  Reading on raises SourceError (it names ``shown``) if a path leads out
    of the archive, or the archive is damaged.
    """
    newest: list[int] = []

    def members() -> Iterator[Member]:
        with contextlib.ExitStack() as stack:
            try:
                opened = stack.enter_context(file.open("rb"))
                start = opened.read(4)
                opened.seek(0)
                if start == b"PK\x03\x04":
                    yield from _zip(stack.enter_context(zipfile.ZipFile(opened)), shown, newest)
                    return
                plain: IO[bytes] = opened
                if start == b"\x28\xb5\x2f\xfd":
                    reader = zstandard.ZstdDecompressor().stream_reader(
                        opened, read_across_frames=True
                    )
                    plain = stack.enter_context(io.BufferedReader(reader, 2**20))
                with tarfile.open(fileobj=plain, mode="r|*") as archive:
                    yield from _tar(archive, shown, newest)
            except _TROUBLE as error:
                raise _damaged(shown, error) from None

    return Tree(members(), newest)


def _tar(archive: tarfile.TarFile, shown: str, newest: list[int]) -> Iterator[Member]:
    for entry in archive:
        path = _clean(entry.name, shown)
        if path is None:
            continue
        newest[:] = [max(0, int(entry.mtime), *newest)]
        if entry.isreg():
            content = archive.extractfile(entry)
            assert content is not None
            mode = "100755" if entry.mode & 0o111 else "100644"
            yield Member(path, mode, entry.size, _Content(content, shown))
        elif entry.issym():
            yield _symlink(path, entry.linkname)
        elif entry.islnk():
            target = _clean(entry.linkname, shown)
            if target is not None:
                yield Member(path, "", same_as=target)


def _zip(archive: zipfile.ZipFile, shown: str, newest: list[int]) -> Iterator[Member]:
    import calendar

    for entry in archive.infolist():
        path = _clean(entry.filename, shown)
        if path is None or entry.is_dir():
            continue
        with contextlib.suppress(ValueError):  # month 0 and the like
            newest[:] = [max(0, calendar.timegm((*entry.date_time, 0, 0, 0)), *newest)]
        mode = entry.external_attr >> 16
        with archive.open(entry) as content:
            if stat.S_ISLNK(mode):
                yield _symlink(path, content.read().decode(errors="surrogateescape"))
            else:
                git_mode = "100755" if mode & 0o111 else "100644"
                yield Member(path, git_mode, entry.file_size, _Content(content, shown))


class _Content:
    """The content of a member, read outside of this module: it brings its own error."""

    def __init__(self, raw: IO[bytes], shown: str) -> None:
        self._raw = raw
        self._shown = shown

    def read(self, size: int) -> bytes:
        try:
            return self._raw.read(size)
        except _TROUBLE as error:
            raise _damaged(self._shown, error) from None


def _damaged(shown: str, error: Exception) -> SourceError:
    return SourceError(f"{shown}: this archive cannot be read: {error}")


def _symlink(path: str, target: str) -> Member:
    raw = target.encode(errors="surrogateescape")
    return Member(path, "120000", len(raw), io.BytesIO(raw))


def _clean(name: str, shown: str) -> str | None:
    """A member's path in its plainest form; None for what is not to be imported."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise SourceError(f"{shown}: refused, since its member {name!r} leads out of it")
    if not parts or any(part.lower() == ".git" for part in parts):
        return None
    return "/".join(parts)
