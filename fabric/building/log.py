"""The log of one job: a file that only grows.

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
    """A log at ``path``, written by one thread; whoever wants to follow it reads the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._digest, self._digested = hashlib.sha256(), 0

    def say(self, text: str) -> None:
        """Append lines of our own."""
        self._append(text.encode("utf-8", "surrogateescape").rstrip(b"\n") + b"\n")

    def copy(self, other: BinaryIO) -> None:
        """Append what another log holds."""
        while piece := other.read(_PIECE):
            self._append(piece)

    def _append(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def take(self, pipe: int) -> bool:
        """Append what is in ``pipe``, which does not block; False at its end."""
        with suppress(BlockingIOError):
            # the kernel moves it: nothing of it passes through this process
            while os.splice(pipe, self._fd, _PIECE):
                pass
            return False
        return True

    def seal(self) -> None:
        """Nobody writes to it any more: `say` and `take` raise OSError from now on."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``."""
        return os.pread(self._fd, length, offset)

    def blob(self) -> Blob:
        """The log as it is now, by content."""
        while piece := os.pread(self._fd, _PIECE, self._digested):
            self._digest.update(piece)
            self._digested += len(piece)
        size = self._digested
        return Blob(self._digest.hexdigest(), size, self.read(0, size) if size <= SMALL else None)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
