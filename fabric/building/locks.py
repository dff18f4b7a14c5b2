"""Locks between all threads and processes of a workspace, by name, without a file for each.

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

    def take(self, name: str, *, shared: bool = False, wait: bool = False) -> int | None:
        """A descriptor that holds the lock ``name`` until it is closed.

        None when somebody else has it, unless ``wait``.  Any number may hold it ``shared``.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, name, shared, wait)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def share(self, fd: int, name: str) -> None:
        """Have ``fd`` hold the lock ``name``, shared, too; waits for who has it alone."""
        _lock(fd, name, shared=True, wait=True)


def _lock(fd: int, name: str, shared: bool, wait: bool) -> None:
    byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    how = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    fcntl.fcntl(fd, how, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
