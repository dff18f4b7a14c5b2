"""Remembers which steps failed last on this machine, for ``show``.

The state folder has a file for each step, named by its cache key.  A writer replaces the file as a
whole, so two builds do not disturb each other.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

import msgspec

from fabric.bounds import FAILURES
from fabric.digest import Digest
from fabric.host.files import recall, remember


class Failure(msgspec.Struct, frozen=True):
    """The last failure of a step."""

    at: datetime  # UTC
    message: str
    log: str = ""  # path of its log; "" if there is none on this machine


class Failures:
    """The failures recorded in a folder, which is made for the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, key: Digest, failure: Failure) -> None:
        """Record a failure.  OSError if it cannot be written."""
        remember(self._folder / key, msgspec.json.encode(failure))
        self._prune()

    def of(self, key: Digest) -> Failure | None:
        """The last failure of a step; None if none is recorded."""
        with contextlib.suppress(ValueError):
            return msgspec.json.decode(recall(self._folder / key), type=Failure)
        return None

    def _prune(self) -> None:
        files = [entry for entry in os.scandir(self._folder) if entry.is_file()]
        if len(files) <= FAILURES:
            return
        files.sort(key=lambda entry: entry.stat().st_mtime_ns)
        for entry in files[:-FAILURES]:
            Path(entry).unlink(missing_ok=True)
