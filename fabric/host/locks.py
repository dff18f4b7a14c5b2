"""Provides locks among processes and threads; the kernel releases a lock when its holder dies.

`locked` locks a file of its own (flock).  `Locks` locks names, each a byte of one file, for an open
file description (fcntl's ``F_OFD_SETLK``): no file is needed for each name, and a killed process
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

#: C's ``struct flock``: type, whence, start, length, pid.
_FLOCK = "@hhqqi0q"


@contextlib.contextmanager
def locked(
    file: Path,
    *,
    shared: bool = False,
    wait: Callable[[], None] | None = None,
    create: bool = True,
    remove: bool = False,
) -> Iterator[None]:
    """Hold the lock ``file`` among processes and threads; wait for it as long as it takes.

    ``wait`` is called repeatedly while another holds it; it should sleep a moment, and may raise,
    as `no_wait` does.  Without ``create``, FileNotFoundError if there is no file.  With ``remove``,
    the file is removed at the end; then no lock on it may be shared.  If its holder removed or
    renamed the file meanwhile, the lock is taken on the file that has the name now.
    """
    while True:
        handle = _opened(file, create)
        try:
            _flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
            if not _is_at(handle, file):
                continue
            try:
                yield
            finally:
                if remove:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file)  # noqa: PTH108
            return
        finally:
            os.close(handle)


def no_wait() -> None:
    """For `locked`: BlockingIOError if another holds the lock."""
    raise BlockingIOError


def _opened(file: Path, create: bool) -> int:
    if not create:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(file, flags, 0o644)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, flags, 0o644)


def _flock(handle: int, kind: int, wait: Callable[[], None] | None) -> None:
    while wait:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
        else:
            return
    fcntl.flock(handle, kind)


def _is_at(handle: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        named = os.stat(file)  # noqa: PTH116
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(handle))


class Locks:
    """The locks in the file ``path``, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> int:
        """A descriptor for `share`, `claim` and `release`; closing it releases its locks."""
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, name: str, *, shared: bool = False, wait: bool = False) -> int | None:
        """A descriptor that holds the lock ``name`` until it is closed.

        Without ``wait``, None if another holds it.  Any number may hold it ``shared``.
        """
        fd = self.open()
        try:
            if _lock(fd, name, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, wait):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def share(self, fd: int, name: str) -> None:
        """Have ``fd`` hold the lock ``name`` shared; wait while another holds it exclusively."""
        _lock(fd, name, fcntl.F_RDLCK, wait=True)

    def claim(self, fd: int, name: str) -> bool:
        """Have ``fd`` hold the lock ``name`` exclusively; False if another holds or shares it."""
        return _lock(fd, name, fcntl.F_WRLCK)

    def release(self, fd: int, name: str) -> None:
        """Release the lock ``name`` that ``fd`` holds."""
        _lock(fd, name, fcntl.F_UNLCK)


def _lock(fd: int, name: str, kind: int, wait: bool = False) -> bool:
    """Set a lock; False if another holds it."""
    byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    how = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, how, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
    except BlockingIOError:
        return False
    return True
