"""Writes the log of one job, which only grows: in memory while it is short, then to a file.

A build prints into a pipe, and never has the file open: a script that writes to /dev/stderr opens
that anew, which would truncate a file.
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
    """A log, written by one thread and read by any.

    Above `SMALL` bytes it is the new file ``path``, which the store can link: such a log is stored
    apart from its manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._short: bytes | None = b""  # the whole log; None: it is in the file
        self._fd = -1  # of the file
        self._sealed = False
        self._digest, self._digested = hashlib.sha256(), 0

    def write(self, text: str) -> None:
        """Append lines."""
        self._append(text.encode("utf-8", "surrogateescape").rstrip(b"\n") + b"\n")

    def copy(self, other: BinaryIO) -> None:
        """Append another log."""
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
        """Readers get the file once it is complete; on a full disk each call tries again."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write(fd, short)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._short = fd, None

    def take(self, pipe: int, most: int) -> bool:
        """Append the contents of ``pipe``, which is non-blocking; False at its end.

        Returns after about ``most`` bytes, since a build may print faster than they are moved.
        """
        with suppress(BlockingIOError):
            while self._short is not None:
                data = os.read(pipe, SMALL + 1)
                if not data:
                    return False
                self._append(data)
            while most > 0:
                # the kernel moves the bytes without copying them here
                moved = os.splice(pipe, self._fd, _PIECE)
                if not moved:
                    return False
                most -= moved
        return True

    def seal(self) -> None:
        """End the log: `write` and `take` raise OSError from now on."""
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
        """The present log as a blob."""
        while piece := self.read(self._digested, _PIECE):
            self._digest.update(piece)
            self._digested += len(piece)
        return Blob(self._digest.hexdigest(), self._digested, self._short)

    def close(self) -> None:
        """Close the file: the log is read no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Close and remove the log."""
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
