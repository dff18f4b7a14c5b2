"""Reads untrusted files, walks untrusted trees, and keeps small files of our own.

No function here follows a symbolic link that a stranger placed, unless it says so.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric import bounds


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    OSError, with ``strerror`` for the user, if it is larger, or is a pipe, a device or anything
    else that may never end; without ``follow``, also if it is a symbolic link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return data


def is_private(path: Path) -> bool:
    """Whether nobody but this user and root can change or replace a file.

    All directories above it count; one that others can write to must be sticky.
    """
    ours = (0, os.geteuid())
    place = real(path)
    try:
        for one in {path, *path.parents, place, *place.parents}:
            look = one.stat()
            sticky = stat.S_ISDIR(look.st_mode) and look.st_mode & stat.S_ISVTX
            if look.st_uid not in ours or (look.st_mode & 0o022 and not sticky):
                return False
    except OSError:
        return False
    return True


def recall(path: Path) -> bytes:
    """The content that `remember` wrote; empty if there is no such regular file."""
    try:
        return read_regular(path, bounds.MEMORY)
    except OSError:
        return b""


def remember(path: Path, content: bytes) -> None:
    """Write a file of ours as `write_whole` does; a directory of that name is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, place=put)


def write_whole(
    path: Path,
    content: bytes,
    mode: int | None = None,
    place: Callable[[Path, Path], object] = Path.replace,
) -> None:
    """Write a file, so that readers see all of it or none; a link of that name is replaced.

    Without ``mode``, the umask determines that of the file.  ``place`` gives it its name.
    """
    fresh = path.with_name(f"{beside(path)}{os.urandom(8).hex()}")
    try:
        fresh.write_bytes(content)
        if mode is not None:
            fresh.chmod(mode)
        place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """``content`` behind its SHA-256, for `unsealed`."""
    return hashlib.sha256(content).digest() + content


def unsealed(data: bytes) -> bytes | None:
    """The content of `sealed` data; None if the data has changed."""
    seal, content = data[:32], data[32:]
    return content if hashlib.sha256(content).digest() == seal else None


def beside(path: Path) -> str:
    """The beginning of the name of a hidden temporary file beside ``path``.

    It is cut, since a name has at most 255 bytes, and a character up to four.
    """
    return f".{path.name[:40]}."


def put(fresh: Path, path: Path) -> None:
    """Rename a file; a directory of the new name is removed."""
    try:
        fresh.replace(path)
    except IsADirectoryError:
        clear(path)
        fresh.replace(path)


def clear(path: Path) -> None:
    """Remove a file of ours, or a directory of that name; no error if there is none."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        import shutil

        shutil.rmtree(path)


def real(path: Path) -> Path:
    """The path with all symbolic links resolved; it need not exist.

    A link to itself stays; before Python 3.13, `Path.resolve` raises RuntimeError for one.
    """
    return Path(os.path.realpath(path))


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _enterable(folder: int, name: str) -> None:
    """PermissionError if this process cannot enter a directory and leave it again."""
    if not os.access(name, os.R_OK | os.X_OK, dir_fd=folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def walk(
    top: Path | str, enter: Callable[[int, str], None] = _enterable
) -> Iterator[tuple[int, str, bool]]:
    """Everything below the directory ``top``, contents before their directory: (descriptor of the
    parent directory, name, whether it is a directory).

    Depth and length of paths are unlimited, since no path is ever written out.  ``enter`` is
    called for a directory before it is opened; its contents are left out if that raises
    PermissionError, or if the directory is gone.
    """
    here = os.open(top, _FOLDER)
    folders: list[str] = []  # of the open directory: those still to be entered
    above: list[tuple[str, list[str]]] = []  # the names down to it, with the same of each parent
    try:
        yield from _in_folder(here, folders)
        while True:
            if folders:
                name = folders.pop()
                try:
                    enter(here, name)
                    inner = os.open(name, _FOLDER, dir_fd=here)
                except (PermissionError, FileNotFoundError):
                    yield here, name, True
                    continue
                os.close(here)
                above.append((name, folders))
                here, folders = inner, []
                yield from _in_folder(here, folders)
            elif above:
                name, folders = above.pop()
                outer = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = outer
                yield here, name, True
            else:
                return
    finally:
        os.close(here)


def _in_folder(here: int, folders: list[str]) -> Iterator[tuple[int, str, bool]]:
    """The entries that are no directories; directories are added to ``folders``.

    A generator, since there may be millions.
    """
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                yield here, entry.name, False
