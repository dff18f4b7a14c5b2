"""Locks names between all threads and processes of a workspace, without a file for each name.

A name is one byte of one file, locked for an open file description (fcntl's ``F_OFD_SETLK``):
the kernel lets go when the description is closed, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from pathlib import Path

#: C's ``struct flock``: type, whence, start, length, pid.
_FLOCK = "@hhqqi0q"


class Locks:
    """The locks in the file ``path``, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> int:
        """A descriptor for `share`, `claim` and `release`: its locks go when it is closed."""
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, name: str, *, shared: bool = False, wait: bool = False) -> int | None:
        """A descriptor that holds the lock ``name`` until it is closed.

        None when somebody else has it, unless ``wait``.  Any number may hold it ``shared``.
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
        """Have ``fd`` hold the lock ``name``, shared, too; waits for who has it alone."""
        _lock(fd, name, fcntl.F_RDLCK, wait=True)

    def claim(self, fd: int, name: str) -> bool:
        """Have ``fd``, which may share ``name``, hold it alone; False if another shares it."""
        return _lock(fd, name, fcntl.F_WRLCK)

    def release(self, fd: int, name: str) -> None:
        """Have ``fd`` hold ``name`` no more."""
        _lock(fd, name, fcntl.F_UNLCK)


def _lock(fd: int, name: str, kind: int, wait: bool = False) -> bool:
    """Set a lock; False if another's is in the way."""
    byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    how = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, how, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
    except BlockingIOError:
        return False
    return True
