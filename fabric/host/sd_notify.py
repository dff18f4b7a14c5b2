"""Tells systemd that a daemon is ready, alive, or stopping."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping


class Supervisor:
    """Whoever started this process; nothing happens if it is not systemd."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes the variables out of ``environ``, which are not for children."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self._every = int(environ.pop("WATCHDOG_USEC", "0")) / 2e6  # seconds; 0: no watchdog
        if environ.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self._every = 0.0
        self._due = 0.0

    def ready(self, status: str = "") -> None:
        """All that was to be done at the start is done."""
        self._tell("READY=1", status)

    def alive(self, now: float, status: str = "") -> None:
        """The main loop turns.  ``now`` is in seconds, of any clock that never goes back."""
        if self._every and now >= self._due:
            self._due = now + self._every
            self._tell("WATCHDOG=1", status)

    def stopping(self) -> None:
        """It ends by itself now."""
        self._tell("STOPPING=1", "")

    def _tell(self, what: str, status: str) -> None:
        if not self._address:
            return
        text = f"{what}\nSTATUS={status}" if status else what
        # so abstract names are spelt; any other is a path
        abstract = self._address.startswith("@")
        address = f"\0{self._address[1:]}" if abstract else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.connect(address)
            line.send(text.encode())
