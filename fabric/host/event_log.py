"""Logs events of a daemon: to journald with fields, or to standard error as lines.

The fields name the subject of an event, so journald finds it by them::

    journalctl FABRIC_WORKER=w3 FABRIC_STEP=zlib
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping

JOURNALD = "/run/systemd/journal/socket"
#: Syslog's priorities.
WARNING, INFO = 4, 6
#: Most characters of a message.
LONGEST = 16_000


class EventLog:
    """Logs a message when called; ``fields`` name its subjects, and may have several values.

    With ``chatty``, messages of level INFO go to standard error, too.
    """

    def __init__(
        self,
        program: str,
        *,
        chatty: bool = False,
        environ: Mapping[str, str] = os.environ,
        journald: str = JOURNALD,
    ) -> None:
        self._program = program
        self._line: socket.socket | None = None
        with contextlib.suppress(OSError):
            # set by systemd: this is the journal, unless standard error was redirected since
            status = os.fstat(sys.stderr.fileno())
            if environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
                line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                line.connect(journald)
                line.setblocking(False)
                self._line = line
        #: whether messages of level INFO go anywhere
        self.informs = chatty or self._line is not None

    def __call__(self, text: str, **fields: str | Iterable[str]) -> None:
        """Log a warning: an operator may have to act."""
        self._note(WARNING, text, fields)

    def info(self, text: str, **fields: str | Iterable[str]) -> None:
        """Log an event that needs no action."""
        self._note(INFO, text, fields)

    def _note(self, priority: int, text: str, fields: Mapping[str, str | Iterable[str]]) -> None:
        if self._line is not None:
            told = [
                ("MESSAGE", text[:LONGEST]),
                ("PRIORITY", str(priority)),
                ("SYSLOG_IDENTIFIER", self._program),
            ]
            for name, values in fields.items():
                for value in (values,) if isinstance(values, str) else values:
                    told.append((f"FABRIC_{name.upper()}", value))
            with contextlib.suppress(OSError):  # its queue is full; the daemon must not block
                self._line.send(b"".join(_field(*each) for each in told if each[1]))
        elif priority < INFO or self.informs:
            # Indented, so that no title looks like a message; a full disk must not end the daemon.
            shown = text.replace("\n", "\n  ")
            with contextlib.suppress(OSError):
                print(f"{self._program}: {shown}", file=sys.stderr, flush=True)


def _field(name: str, value: str) -> bytes:
    """A field in journald's native protocol: one of several lines has its length in front."""
    encoded = value.encode(errors="replace")
    if b"\n" not in encoded:
        return b"%s=%s\n" % (name.encode(), encoded)
    return b"%s\n%s%s\n" % (name.encode(), len(encoded).to_bytes(8, "little"), encoded)
