"""Reads untrusted files, walks untrusted trees, and keeps small files that remember something."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric import bounds


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """What an ordinary file of at most ``limit`` bytes holds.

    OSError, with ``strerror`` for the user, for one that is larger, or is a pipe, a device or
    anything else that may never end; unless ``follow``, for a symbolic link, too.
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


def recall(path: Path) -> bytes:
    """What `remember` wrote; nothing if there is nothing, or something else."""
    try:
        return read_regular(path, bounds.MEMORY)
    except OSError:
        return b""


def remember(path: Path, content: bytes) -> None:
    """Write a file of ours as `write_whole` does; a folder that has its name is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(path, content)
    except IsADirectoryError:
        clear(path)
        write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody sees half of it; a link that has its name is replaced."""
    fresh = path.with_name(f"{beside(path)}{os.urandom(8).hex()}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """``content`` behind its SHA-256, for `unsealed` to compare."""
    return hashlib.sha256(content).digest() + content


def unsealed(data: bytes) -> bytes | None:
    """The content of `sealed` data; None if the data has changed."""
    seal, content = data[:32], data[32:]
    return content if hashlib.sha256(content).digest() == seal else None


def beside(path: Path) -> str:
    """How the name of a hidden file begins that is to stand beside ``path`` for a while.

    A name has 255 bytes at most, and a character up to four.
    """
    return f".{path.name[:40]}."


def put(fresh: Path, path: Path) -> None:
    """Give a file its name, though a folder may have that."""
    try:
        fresh.replace(path)
    except IsADirectoryError:
        clear(path)
        fresh.replace(path)


def clear(path: Path) -> None:
    """Remove a file of ours, or a folder in its place; nothing if there is none."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        import shutil

        shutil.rmtree(path)


def real(path: Path) -> Path:
    """Where a path leads, be there anything or not; a link to itself leads to itself.

    Unlike `Path.resolve`, which raises RuntimeError for the latter before Python 3.13.
    """
    return Path(os.path.realpath(path))


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _enterable(folder: int, name: str) -> None:
    """PermissionError if we cannot go into a directory, and out of it again."""
    if not os.access(name, os.R_OK | os.X_OK, dir_fd=folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def walk(
    top: Path | str, enter: Callable[[int, str], None] = _enterable
) -> Iterator[tuple[int, str, bool]]:
    """All that is below the directory ``top``, what is in a directory before the directory itself:
    (descriptor of the directory it is in, name, whether it is a directory).

    However deep it is, and however long its paths get: none is ever written out.  ``enter`` is
    called for a directory before it is opened; where it raises PermissionError, or what it was
    called for is gone, nothing is told of what is inside.
    """
    here = os.open(top, _FOLDER)
    folders: list[str] = []  # in the one that is open, yet to be entered
    above: list[tuple[str, list[str]]] = []  # its name, and the same of the one it is in
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
    """All but directories, which are added to ``folders``: there may be millions."""
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                yield here, entry.name, False
