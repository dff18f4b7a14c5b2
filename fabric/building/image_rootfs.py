"""Reads a system artifact (a ``tar.zst``) as a stream, with the files of one machine laid over it.

Nothing is unpacked: owners, device nodes and setuid bits go from the archive into the filesystem,
so no rights are needed, and only a piece of a file is in memory at a time.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import msgspec
import zstandard

from fabric.building.archive import MTIME
from fabric.building.tree import follow
from fabric.errors import BuildFailed, FabricError

#: mtime of everything that an image adds, in seconds since 1970: that of all artifacts.
EPOCH = MTIME
BLOCK = 4096
_PIECE = 1024 * 1024


class ImageError(FabricError):
    """A disk image cannot be made of this system, or on this machine."""


class File(msgspec.Struct, frozen=True):
    """A file put into an image: ``data`` is its content, or the target of a symbolic link.

    ``mode`` has permission bits, and the type as in ``stat`` if it is not a regular file:
    0o120777 is a symbolic link, 0o040755 a directory (without data).  A file that is ``new`` must
    not be in the system already.
    """

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    new: bool = False


class Survey(msgspec.Struct):
    """The facts about a root filesystem that an image needs."""

    sha256: str  # of the archive, as compressed
    entries: int = 0
    blocks: int = 0  # of BLOCK bytes, content and folders
    kinds: dict[str, bytes] = {}  # path -> tar type
    links: dict[bytes, bytes] = {}  # symbolic link -> target
    boot: dict[str, Path] = {}  # kernels and initrds -> a copy of each
    carriers: set[str] = set()  # paths that hard links point to

    def resolve(self, path: str) -> str:
        """``path`` with the symbolic links among its parents resolved.

        ImageError for a path that leads out of the root filesystem, or into a loop.
        """
        parts = PurePosixPath(path.lstrip("/")).parts
        if not parts or ".." in parts:
            raise ImageError(f"{path!r} is no path inside a root filesystem")
        try:
            return self._followed("/".join(parts), last=False)
        except BuildFailed as error:
            raise ImageError(f"{path}: {error}") from error

    def follow(self, path: str) -> str:
        """``path`` with all symbolic links resolved, also the last; a link in a loop stays."""
        try:
            return self._followed(path, last=True)
        except BuildFailed:
            return self.resolve(path)

    def _followed(self, path: str, *, last: bool) -> str:
        found = follow(path.encode("utf-8", "surrogateescape"), self.links, last=last)
        return found.decode("utf-8", "surrogateescape")


def survey(rootfs: Path, scratch: Path) -> Survey:
    """Read the whole archive once; copies of kernels and initrds go to ``scratch``."""
    with rootfs.open("rb") as file:
        found = Survey(hashlib.file_digest(file, "sha256").hexdigest())
    names = 0
    with members(rootfs) as each:
        for member, content in each:
            path = normal(member.name)
            found.entries += 1
            names += len(path) // 2 + 16  # approximate bytes in its folder
            found.kinds[path] = member.type
            if member.isreg():
                found.blocks += -(-member.size // BLOCK)
                name = path.removeprefix("boot/")
                if path != name and name.startswith(("vmlinuz", "initrd")) and "/" not in name:
                    copy = scratch / name
                    with copy.open("wb") as file:
                        _copy(content(), file)
                    found.boot[path] = copy
            elif member.isdir():
                found.blocks += 1
            elif member.issym():
                found.links[path.encode("utf-8", "surrogateescape")] = member.linkname.encode(
                    "utf-8", "surrogateescape"
                )
                found.blocks += len(member.linkname) > 59  # shorter ones live in the inode
            elif member.islnk():
                found.carriers.add(normal(member.linkname))
                found.kinds[path] = tarfile.REGTYPE
    found.blocks += names // BLOCK
    return found


def overlay(files: Mapping[str, File], found: Survey) -> dict[str, File]:
    """``files`` by their resolved paths.  ImageError if one conflicts with the system.

    A folder of the system stays as it is, also one that a symbolic link leads to.
    """
    placed: dict[str, File] = {}
    for path, file in sorted(files.items()):
        directory = stat.S_ISDIR(file.mode)
        if directory and found.kinds.get(found.follow(path)) == tarfile.DIRTYPE:
            continue
        real = found.resolve(path)
        old = found.kinds.get(real)
        if real in placed:
            raise ImageError(f"/{real} is given twice among the files of this image")
        if old is not None and (old == tarfile.DIRTYPE) != directory:
            raise ImageError(
                f"/{real} is {'a folder' if old == tarfile.DIRTYPE else 'no folder'} in the system,"
                f" and {'a folder' if directory else 'a file'} among the files of this image"
            )
        if file.new and old is not None:
            raise ImageError(f"/{real} is in the system already, and may not be overwritten")
        if real in found.carriers:
            raise ImageError(f"/{real} has hard links in the system: replacing it is not possible")
        placed[real] = file
    for path in list(placed):
        for parent in _parents(path):
            kind = found.kinds.get(parent)
            if parent in placed and not stat.S_ISDIR(placed[parent].mode):
                raise ImageError(f"/{parent} cannot be a file and the folder of /{path}")
            if kind not in (None, tarfile.DIRTYPE):
                raise ImageError(f"/{path} cannot be made: /{parent} is no folder in the system")
    return placed


def files_below(folder: Path) -> dict[str, File]:
    """The files below ``folder`` by path ("/etc/motd"), all owned by root.

    ImageError if one is no file, folder or symbolic link, or cannot be read.
    """
    files: dict[str, File] = {}

    def take(directory: Path) -> None:
        for path in sorted(directory.iterdir()):
            mode = path.lstat().st_mode
            data = b""
            if stat.S_ISLNK(mode):
                data = os.fsencode(path.readlink())
            elif stat.S_ISREG(mode):
                data = path.read_bytes()
            elif stat.S_ISDIR(mode):
                take(path)
            else:
                raise ImageError(f"{path}: an image can take files, folders and symbolic links")
            files[f"/{path.relative_to(folder)}"] = File(data, mode)

    try:
        take(folder)
    except OSError as error:
        raise ImageError(f"{error.filename}: {error.strerror}") from error
    return files


def write_tar(rootfs: Path, placed: Mapping[str, File], to: IO[bytes]) -> None:
    """The archive with ``placed`` (from `overlay`) over it, as a plain tar, to a stream.

    GNU headers keep the bytes of file names; every folder precedes its contents.
    """
    seen: set[str] = set()

    def put(member: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        for parent in _parents(member.name):
            if parent not in seen:
                seen.add(parent)
                to.write(_header(_entry(parent, File(mode=stat.S_IFDIR | 0o755))))
        seen.add(member.name)
        to.write(_header(member))
        if content is not None:
            _copy(content, to)
            to.write(bytes(-member.size % tarfile.BLOCKSIZE))

    with members(rootfs) as each:
        for member, content in each:
            member.name = normal(member.name)
            if member.name in placed:
                continue
            if member.islnk():
                member.linkname = normal(member.linkname)
            put(member, content() if member.isreg() else None)
    for path, file in sorted(placed.items()):
        member = _entry(path, file)
        put(member, io.BytesIO(file.data) if member.isreg() else None)
    to.write(bytes(2 * tarfile.BLOCKSIZE))


class _Content(Protocol):
    def __call__(self) -> IO[bytes]: ...


@contextmanager
def members(rootfs: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, _Content]]]:
    """Every member with a function that opens it; names keep undecodable bytes."""
    try:
        with (
            rootfs.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream,
            tarfile.open(
                fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape"
            ) as archive,
        ):
            yield _each(archive)
    except (tarfile.TarError, zstandard.ZstdError) as error:
        raise ImageError(f"{rootfs} is not a whole system artifact (a tar.zst): {error}") from error


def _each(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, _Content]]:
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all

        def content(member: tarfile.TarInfo = member) -> IO[bytes]:
            file = archive.extractfile(member)
            assert file is not None  # called for regular files only
            return file

        yield member, content


def _entry(path: str, file: File) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(file.mode)
    member.uid, member.gid, member.mtime = file.uid, file.gid, EPOCH
    kind = stat.S_IFMT(file.mode)
    if kind == stat.S_IFDIR:
        member.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        member.type = tarfile.SYMTYPE
        member.linkname = file.data.decode("utf-8", "surrogateescape")
    elif kind in (0, stat.S_IFREG):
        member.size = len(file.data)
    else:
        raise ImageError(f"/{path}: mode {file.mode:o} is no file, folder or symbolic link")
    return member


def _header(member: tarfile.TarInfo) -> bytes:
    member.uname = member.gname = ""
    member.mtime = int(member.mtime)
    if member.isreg():
        member.type = tarfile.REGTYPE
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _copy(source: IO[bytes], to: IO[bytes]) -> None:
    while piece := source.read(_PIECE):
        to.write(piece)


def normal(name: str) -> str:
    """A member's path without "./", and without "/" at either end; "." for the root."""
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
