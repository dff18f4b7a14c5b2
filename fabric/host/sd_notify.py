"""Tells systemd that a daemon is ready, alive, or stopping."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping


class Supervisor:
    """The service manager of this process; without systemd, all methods do nothing."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Removes systemd's variables from ``environ``, since children must not inherit them."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self._every = int(environ.pop("WATCHDOG_USEC", "0")) / 2e6  # seconds; 0: no watchdog
        if environ.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self._every = 0.0
        self._due = 0.0

    def ready(self, status: str = "") -> None:
        """Report that the start is complete."""
        self._tell("READY=1", status)

    def alive(self, now: float, status: str = "") -> None:
        """Report that the main loop runs.  ``now``: seconds of a monotonic clock."""
        if self._every and now >= self._due:
            self._due = now + self._every
            self._tell("WATCHDOG=1", status)

    def stopping(self) -> None:
        """Report that the daemon stops by itself."""
        self._tell("STOPPING=1", "")

    def _tell(self, what: str, status: str) -> None:
        if not self._address:
            return
        text = f"{what}\nSTATUS={status}" if status else what
        # "@" stands for the zero byte of an abstract name; any other address is a path
        abstract = self._address.startswith("@")
        address = f"\0{self._address[1:]}" if abstract else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.connect(address)
            line.send(text.encode())
