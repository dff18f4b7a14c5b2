"""Records the use of a remote store by this machine, in one small object a day.

A remote store has the time when an object was written, and not when it was read.  So its clients
record there which built steps they use::

    uses/<day>-<client>     cache keys, one a line; the client is a cache folder

All processes of a cache collect their records in a file, each key once a day, which is uploaded
once an hour, and when a build ends.  So reading takes no request.  A killed process loses nothing,
since the next one uploads the file.  If records are lost with their machine, the last use of a step
is, for `gc`, when it was written, or when a step was written that was built with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from fabric.host.locks import locked

#: Seconds between two uploads.
_EVERY = 3600.0
_KEY = re.compile(rb"[0-9a-f]{64}")
_CLIENT = re.compile(rb"[0-9a-f]{32}")
_DAYS = "[0-9]" * 4 + "-[0-9][0-9]" * 2


class Uses:
    """Records in ``folder``; ``upload(path, content)`` stores them.

    A failed upload is repeated an hour later, and is no error: records are hints for `gc`.
    """

    def __init__(self, folder: Path, upload: Callable[[str, bytes], None]) -> None:
        self._folder = folder
        self._upload = upload
        self._lock = folder / "lock"
        self._unsent = folder / "unsent"  # exists if a record was not uploaded
        self._sent = folder / "sent"  # its time: the last upload
        self._sending: threading.Thread | None = None

    def note(self, keys: Collection[str]) -> None:
        """Record that these keys are used today."""
        with contextlib.suppress(OSError):
            with locked(self._lock):
                file = self._today()
                fresh = sorted({key.encode() for key in keys} - keys_in(_content(file)))
                if fresh:
                    with file.open("ab") as notes:
                        # on a new line, since a killed process may have left half a line
                        notes.write(b"\n" + b"\n".join(fresh))
                    self._unsent.touch()
            if self._unsent.exists() and time.time() - _time(self._sent) > _EVERY:
                self._send()

    def flush(self, timeout: float) -> None:
        """Upload new records; wait at most so many seconds."""
        if self._unsent.exists():
            self._send()
        if self._sending is not None:
            self._sending.join(timeout)

    def _send(self) -> None:
        """Upload in a thread, so that an unreachable server delays no build."""
        if self._sending is None or not self._sending.is_alive():
            self._sending = threading.Thread(target=self._uploaded, name="uses", daemon=True)
            self._sending.start()

    def _uploaded(self) -> None:
        try:
            with locked(
                self._folder / "sending"
            ):  # so that older records do not replace newer ones
                with locked(self._lock):
                    self._unsent.unlink(missing_ok=True)
                    self._sent.touch()
                    client = self._client()
                    today = self._today()
                    notes = {file: _content(file) for file in self._folder.glob(_DAYS)}
                for file, content in notes.items():
                    self._upload(f"uses/{file.name}-{client}", content)
                for file in notes.keys() - {today}:  # of past days, or invalid names
                    file.unlink()
        except Exception:  # noqa: BLE001 - of whatever kind, it is tried again
            with contextlib.suppress(OSError):
                self._unsent.touch()

    def _today(self) -> Path:
        return self._folder / time.strftime("%Y-%m-%d", time.gmtime())

    def _client(self) -> str:
        file = self._folder / "client"
        known = _content(file)
        if not _CLIENT.fullmatch(known):
            known = os.urandom(16).hex().encode()
            file.write_bytes(known)
        return known.decode()


def keys_in(content: bytes) -> set[bytes]:
    """The cache keys in records; other lines are skipped."""
    return {line for line in content.split(b"\n") if _KEY.fullmatch(line)}


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _time(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
