"""The log of one job: a file that only grows."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

from fabric.jobs import Blob


class Log:
    """A log at ``path``, written by the sandbox straight to ``fd`` and by us through `say`.

    Both append, so nothing passes through this process and nobody overwrites anybody; whoever
    wants to follow it reads the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o644)

    def say(self, text: str) -> None:
        """Append lines of our own."""
        data = text.encode("utf-8", "surrogateescape").rstrip(b"\n") + b"\n"
        while data:
            data = data[os.write(self.fd, data) :]

    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``."""
        return os.pread(self.fd, length, offset)

    def blob(self) -> Blob:
        """The log as it is now, by content."""
        digest, size = hashlib.sha256(), 0
        while piece := os.pread(self.fd, 1 << 20, size):
            digest.update(piece)
            size += len(piece)
        return Blob(digest.hexdigest(), size)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
