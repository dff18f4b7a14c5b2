"""Logs events of a daemon: to journald with fields, or to standard error as lines.

journald finds an event by its subject::

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
#: Bytes of one note, at most.
LONGEST = 16_000


class EventLog:
    """Call it with what is to be said; ``fields`` say what that is about, and may have several
    values.

    ``chatty``: on standard error, too, say what only informs.
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
            # systemd tells so that standard error is the journal, unless somebody redirected it
            status = os.fstat(sys.stderr.fileno())
            if environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
                line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                line.connect(journald)
                line.setblocking(False)
                self._line = line
        #: whether anybody hears what only informs
        self.informs = chatty or self._line is not None

    def __call__(self, text: str, **fields: str | Iterable[str]) -> None:
        """Something that an operator may want to do something about."""
        self._note(WARNING, text, fields)

    def info(self, text: str, **fields: str | Iterable[str]) -> None:
        """Something that happened."""
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
            with contextlib.suppress(OSError):  # journald is busy: it has other notes to keep
                self._line.send(b"".join(_field(*each) for each in told if each[1]))
        elif priority < INFO or self.informs:
            # Nobody's title begins a line, as if it were a note; and a full disk ends nobody.
            shown = text.replace("\n", "\n  ")
            with contextlib.suppress(OSError):
                print(f"{self._program}: {shown}", file=sys.stderr, flush=True)


def _field(name: str, value: str) -> bytes:
    """As journald's native protocol wants it: with its length if it has several lines."""
    encoded = value.encode(errors="replace")
    if b"\n" not in encoded:
        return b"%s=%s\n" % (name.encode(), encoded)
    return b"%s\n%s%s\n" % (name.encode(), len(encoded).to_bytes(8, "little"), encoded)
