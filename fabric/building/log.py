"""Writes the log of one job, which only grows: in memory while it is short, then to a file.

A build prints into a pipe and never gets hold of the file: a script that writes to /dev/stderr
opens it anew, and of a file that cuts off all that was printed before.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fabric.jobs import SMALL, Blob

#: Bytes moved at once.
_PIECE = 1 << 20


class Log:
    """A log, written by one thread, and read by whoever wants to follow it.

    From more than `SMALL` bytes on it is the new file ``path``: what is stored apart from its
    manifest can be linked there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._short: bytes | None = b""  # all of it; None: it is in the file
        self._fd = -1  # of the file
        self._sealed = False
        self._digest, self._digested = hashlib.sha256(), 0

    def say(self, text: str) -> None:
        """Append lines of our own."""
        self._append(text.encode("utf-8", "surrogateescape").rstrip(b"\n") + b"\n")

    def copy(self, other: BinaryIO) -> None:
        """Append what another log holds."""
        while piece := other.read(_PIECE):
            self._append(piece)

    def _append(self, data: bytes) -> None:
        if self._sealed:
            raise OSError(f"The log {self.path} is sealed")
        if self._short is not None:
            if len(self._short) + len(data) <= SMALL:
                self._short += data
                return
            self._put_into_file(self._short)
        _write(self._fd, data)

    def _put_into_file(self, short: bytes) -> None:
        """Readers have the file once all is in it; on a full disk it is tried anew each time."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write(fd, short)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._short = fd, None

    def take(self, pipe: int, most: int) -> bool:
        """Append what is in ``pipe``, which does not block; False at its end.

        It returns after about ``most`` bytes: a build may print faster than they are moved.
        """
        with suppress(BlockingIOError):
            while self._short is not None:
                data = os.read(pipe, SMALL + 1)
                if not data:
                    return False
                self._append(data)
            while most > 0:
                # the kernel moves it: nothing of it passes through this process
                moved = os.splice(pipe, self._fd, _PIECE)
                if not moved:
                    return False
                most -= moved
        return True

    def seal(self) -> None:
        """Nobody writes to it any more: `say` and `take` raise OSError from now on."""
        self._sealed = True
        if self._short is None:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)

    def size(self) -> int:
        """Bytes so far."""
        short = self._short
        return os.fstat(self._fd).st_size if short is None else len(short)

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``."""
        short = self._short
        if short is None:
            return os.pread(self._fd, length, offset)
        return short[offset : offset + length]

    def blob(self) -> Blob:
        """The log as it is now, by content."""
        while piece := self.read(self._digested, _PIECE):
            self._digest.update(piece)
            self._digested += len(piece)
        return Blob(self._digest.hexdigest(), self._digested, self._short)

    def close(self) -> None:
        """It is read no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """It is wanted no more."""
        self.close()
        if self._short is None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
