"""Reports what this machine uses of a remote store, in one small object a day.

A remote store knows when an object was written, and not when it was read.  So its clients note
there which built steps they use::

    uses/<day>-<client>     cache keys, one a line; the client is a cache folder

The notes of all processes of a cache are gathered in a file of it, each key once a day, and
uploaded once an hour, and when a build ends.  So reading costs no request.  A process that is
killed loses nothing: the next one uploads what is in the file.  If notes are lost with their
machine, `gc` takes a step for unused since it was written, or since a step was written that was
built with it.
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
    """Notes in ``folder``, which ``upload`` brings to the store: (path there, content).

    What fails is tried again an hour later, and is no error: notes are hints for `gc`.
    """

    def __init__(self, folder: Path, upload: Callable[[str, bytes], None]) -> None:
        self._folder = folder
        self._upload = upload
        self._lock = folder / "lock"
        self._unsent = folder / "unsent"  # there if a note was not uploaded
        self._sent = folder / "sent"  # its time: the last upload
        self._sending: threading.Thread | None = None

    def note(self, keys: Collection[str]) -> None:
        """These are used today."""
        with contextlib.suppress(OSError):
            with locked(self._lock):
                file = self._today()
                fresh = sorted({key.encode() for key in keys} - keys_in(_content(file)))
                if fresh:
                    with file.open("ab") as notes:
                        # a line of its own, also after one that a killed process left half
                        notes.write(b"\n" + b"\n".join(fresh))
                    self._unsent.touch()
            if self._unsent.exists() and time.time() - _time(self._sent) > _EVERY:
                self._send()

    def flush(self, timeout: float) -> None:
        """Upload what was not yet; wait so many seconds for that at most."""
        if self._unsent.exists():
            self._send()
        if self._sending is not None:
            self._sending.join(timeout)

    def _send(self) -> None:
        """Upload, in a thread: a server that is out of reach holds up no build."""
        if self._sending is None or not self._sending.is_alive():
            self._sending = threading.Thread(target=self._uploaded, name="uses", daemon=True)
            self._sending.start()

    def _uploaded(self) -> None:
        try:
            with locked(self._folder / "sending"):  # so that no older notes replace newer ones
                with locked(self._lock):
                    self._unsent.unlink(missing_ok=True)
                    self._sent.touch()
                    client = self._client()
                    today = self._today()
                    notes = {file: _content(file) for file in self._folder.glob(_DAYS)}
                for file, content in notes.items():
                    self._upload(f"uses/{file.name}-{client}", content)
                for file in notes.keys() - {today}:  # of days that are over, or never were
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
    """The cache keys in notes; all else in them is left out."""
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
