"""The log files that a build leaves in the user's current directory.

A file is the log of one attempt from its first byte on; a new attempt begins it anew.  Two
initiators in one directory do not write into one file: the second takes the next free name.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fabric.errors import FabricError


class UserLog:
    """One open log file."""

    def __init__(self, directory: Path, name: str) -> None:
        """Opens ``directory/name`` anew, or a numbered sister if another build writes it."""
        for number in range(1, 1000):
            path = directory / (
                name if number == 1 else f"{name.removesuffix('.log')}.{number}.log"
            )
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise FabricError(f"{path}: cannot write the log there: {error.strerror}") from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                continue
            self.path = path
            self._fd = fd
            self.restart()
            return
        raise FabricError(f"{directory / name}: a thousand builds write logs here")

    def restart(self) -> None:
        """Begin anew: another attempt."""
        if os.fstat(self._fd).st_size:  # ext4 flushes what was ever truncated when it is closed
            os.ftruncate(self._fd, 0)
        self.size = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """``data``, which belongs at ``offset``."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise FabricError(f"{self.path}: cannot write the log: {error.strerror}") from None
        self.size = max(self.size, offset)

    def tail(self, lines: int = 20, most: int = 16 * 1024) -> list[str]:
        """Its last lines."""
        start = max(0, self.size - most)
        text = os.pread(self._fd, self.size - start, start).decode(errors="replace")
        return text.splitlines()[-lines:]

    def close(self) -> None:
        os.close(self._fd)
