"""Reads tarballs and zip files without unpacking them on the disk.

Archives are untrusted: their contents are bounded, and every error in one is a SourceError with the
names of the archive and the member.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from fabric import bounds
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.shared_files import scratch
from fabric.host.tar_streams import TarEntry, Xz, short
from fabric.trove.importers.commit import Member, Tree

#: Errors of the readers for archives that are damaged or malicious.
ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zstandard.ZstdError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # a zip file's exotic compression; too many headers in a row
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)
_CHUNK = 1 << 20
#: Names of archives, for messages.
_ARCHIVE = re.compile(r"\.(tar|tgz|tbz2?|txz|zip|tar\.\w+)$")


def read(file: Path, shown: str) -> Tree:
    """The files of an archive: tar (plain, gz, bz2, xz, zst) or zip.

    The format is detected by the content.  Directories, devices, pipes and ``.git`` are left out,
    since git cannot store them.  Iterating raises SourceError (which names ``shown``) if a path
    leads out of the archive, a bound is exceeded, or the archive is damaged.
    """
    newest: list[int] = []

    def members() -> Iterator[Member]:
        checks = _Checks(shown, newest)
        with contextlib.ExitStack() as stack:
            try:
                opened = stack.enter_context(file.open("rb"))
                start = opened.read(6)
                opened.seek(0)
                if start.startswith(b"PK\x03\x04"):
                    checks.directory(opened)
                    yield from _zip(stack.enter_context(zipfile.ZipFile(opened)), checks)
                    return
                plain: IO[bytes] = opened
                if start.startswith(b"\x28\xb5\x2f\xfd"):
                    reader = zstandard.ZstdDecompressor().stream_reader(
                        opened, read_across_frames=True
                    )
                    plain = stack.enter_context(io.BufferedReader(reader, _CHUNK))
                elif start == b"\xfd7zXZ\0" or start.startswith(b"\x5d\0\0"):
                    plain = stack.enter_context(io.BufferedReader(Xz(opened), _CHUNK))
                with tarfile.open(fileobj=plain, mode="r|*", tarinfo=TarEntry) as archive:
                    yield from _tar(archive, checks)
            except ERRORS as error:
                raise checks.damaged(error) from None

    return Tree(members(), newest)


def read_inner(outer: Tree, pattern: str, shown: str, folder: Path, cancel: CancelToken) -> Tree:
    """The files of the archive in ``outer`` whose path fits ``pattern``, as by `read`.

    ``*`` is any text without "/", and the path may lack its first folder.  Exactly one member must
    fit.  It is unpacked into ``folder`` for as long as the tree is read.
    """
    newest: list[int] = []

    def members() -> Iterator[Member]:
        with scratch(folder, "inner-") as temporary:
            file = temporary / "archive"
            tree = read(file, f"{shown}: {_extract(outer, pattern, shown, file, cancel)}")
            yield from tree.members
            newest[:] = tree.newest

    return Tree(members(), newest)


def starred(pattern: str) -> re.Pattern[str]:
    """Paths that fit ``pattern``, in which ``*`` stands for any text without ``/``."""
    return re.compile(re.escape(pattern).replace(r"\*", "[^/]*"))


def _extract(outer: Tree, pattern: str, shown: str, file: Path, cancel: CancelToken) -> str:
    """Write the only member that fits to a file; return its path."""
    wanted = starred(pattern)
    fitting, others = [], []
    for member in outer.members:
        cancel.check()
        short_path = member.path.partition("/")[2]
        if not (wanted.fullmatch(member.path) or wanted.fullmatch(short_path)):
            if _ARCHIVE.search(member.path):
                others.append(short_path or member.path)
            continue
        fitting.append(member.path)
        if len(fitting) > 1:
            continue
        if member.content is None or member.mode == "120000":
            raise SourceError(f"{shown}: {short(member.path)} is a link, and no archive")
        left = member.size
        with file.open("wb") as written:
            while left:
                cancel.check()
                piece = member.content.read(min(left, _CHUNK))
                written.write(piece)
                left -= len(piece)
    if len(fitting) == 1:
        return short(fitting[0])
    if fitting:
        found = ", ".join(map(short, sorted(fitting)[:8]))
        raise SourceError(f"{shown}: more than one file fits 'inner: {pattern}': {found}")
    listed = ", ".join(map(short, sorted(others)[:8])) or "none"
    raise SourceError(f"{shown}: no file in it fits 'inner: {pattern}'; archives in it: {listed}")


def _tar(archive: tarfile.TarFile, checks: _Checks) -> Iterator[Member]:
    while (entry := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
        path = checks.member(entry.name, entry.size, entry.mtime)
        if path is None:
            continue
        if entry.isreg():
            content = archive.extractfile(entry)
            assert content is not None
            mode = "100755" if entry.mode & 0o111 else "100644"
            yield Member(path, mode, entry.size, _Content(content, checks))
        elif entry.issym():
            yield checks.symlink(path, entry.linkname.encode(errors="surrogateescape"))
        elif entry.islnk():
            target = checks.path(entry.linkname)
            if target is not None:
                yield Member(path, "", same_as=target)


def _zip(archive: zipfile.ZipFile, checks: _Checks) -> Iterator[Member]:
    import calendar

    for entry in archive.infolist():
        time = 0
        with contextlib.suppress(ValueError):  # month 0 and the like
            time = calendar.timegm((*entry.date_time, 0, 0, 0))
        path = checks.member(entry.filename, entry.file_size, time)
        if path is None or entry.is_dir():
            continue
        if entry.flag_bits & 1:
            raise checks.refused("it is encrypted")
        mode = entry.external_attr >> 16
        with archive.open(entry) as content:
            if stat.S_ISLNK(mode):
                yield checks.symlink(path, content.read(bounds.LINK_TARGET + 1))
            else:
                git_mode = "100755" if mode & 0o111 else "100644"
                yield Member(path, git_mode, entry.file_size, _Content(content, checks))


class _Checks:
    """Checks the members of an archive, one after the other, against the bounds."""

    def __init__(self, shown: str, newest: list[int]) -> None:
        self._shown = shown
        self._newest = newest
        self._entries = 0
        self._bytes = 0
        self._member = ""  # the member being read

    def refused(self, why: str) -> SourceError:
        """The error for a refused archive, or the member being read."""
        member = f"its member {short(self._member)!r}: " if self._member else ""
        return SourceError(f"{self._shown}: refused: {member}{why}")

    def damaged(self, error: Exception) -> SourceError:
        """The error for a damaged archive, or the member being read."""
        member = f" at {short(self._member)!r}" if self._member else ""
        why = str(error) or type(error).__name__
        return SourceError(f"{self._shown}: this archive cannot be read{member}: {why}")

    def directory(self, archive: IO[bytes]) -> None:
        """Refuse a zip file whose directory, which zipfile reads at once, has too many entries.

        The size of the directory is the one in the file, which zipfile uses, too.
        """
        size = archive.seek(0, io.SEEK_END)
        tail_size = min(size, 22 + 20 + 0xFFFF)
        archive.seek(size - tail_size)
        tail = archive.read(tail_size)
        archive.seek(0)
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) - end < 22:
            return  # zipfile reports the error
        length: int = struct.unpack_from("<I", tail, end + 12)[0]
        if tail[end - 20 : end - 16] == b"PK\6\7":
            at: int = struct.unpack_from("<Q", tail, end - 12)[0]
            archive.seek(min(at, size))
            record = archive.read(56)
            archive.seek(0)
            if len(record) == 56:
                length = struct.unpack_from("<Q", record, 40)[0]
        if length // 46 > bounds.TREE_ENTRIES:  # the least size of an entry
            raise self._too_many()

    def member(self, name: str, size: int, time: float) -> str | None:
        """The normalized path of the next member; None if it is not imported."""
        self._member = name
        self._entries += 1
        self._bytes += max(0, size)
        if self._entries > bounds.TREE_ENTRIES:
            raise self._too_many()
        if size < 0:
            raise self.refused(f"it has {size} bytes")
        if self._bytes > bounds.SOURCE_SIZE:
            raise self.refused(
                f"with it the files have {self._bytes:,} bytes, and the limit is"
                f" {bounds.SOURCE_SIZE:,}"
            )
        path = self.path(name)
        if path is not None:
            if not math.isfinite(time) or abs(time) >= 1 << 40:
                raise self.refused(f"its time is {time}")
            self._newest[:] = [max(0, int(time), *self._newest)]
        return path

    def path(self, name: str) -> str | None:
        """A normalized path; None for one that is not imported."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise self.refused("it leads out of the archive")
        if "\0" in name:
            raise self.refused("there is a zero byte in its name")
        if not parts or any(part.lower() == ".git" for part in parts):
            return None
        path = "/".join(parts)
        if len(path.encode(errors="surrogateescape")) > bounds.SOURCE_PATH:
            raise self.refused(f"its path has more than {bounds.SOURCE_PATH:,} bytes")
        if max(len(part.encode(errors="surrogateescape")) for part in parts) > bounds.SOURCE_NAME:
            raise self.refused(f"a part of its path has more than {bounds.SOURCE_NAME} bytes")
        if len(parts) > bounds.TREE_DEPTH:
            raise self.refused(f"it is more than {bounds.TREE_DEPTH} folders deep")
        return path

    def symlink(self, path: str, target: bytes) -> Member:
        """A symbolic link as a member."""
        if not target or len(target) > bounds.LINK_TARGET or b"\0" in target:
            raise self.refused("it is a symbolic link, and its target is no path")
        return Member(path, "120000", len(target), io.BytesIO(target))

    def _too_many(self) -> SourceError:
        self._member = ""
        return self.refused(f"it has more than {bounds.TREE_ENTRIES:,} entries, the limit")


class _Content:
    """The content of a member, read outside of this module, with errors of this module."""

    def __init__(self, raw: IO[bytes], checks: _Checks) -> None:
        self._raw = raw
        self._checks = checks

    def read(self, size: int) -> bytes:
        """Between 1 and ``size`` bytes.  SourceError at the end, which comes too early."""
        try:
            if data := self._raw.read(size):
                return data
        except ERRORS as error:
            raise self._checks.damaged(error) from None
        raise self._checks.damaged(EOFError("it ends early"))
