"""Caches remote blobs on this machine.  A removed copy is fetched again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from fabric.host.shared_files import Tally, scratch, sweep

_FETCHING = "fetching-"


class Copies:
    """Files ``folder/blobs/<sha256>``, for any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "blobs"
        self._scratch = folder
        self._fetching: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def get(self, sha256: str, fetch: Callable[[Path], None]) -> tuple[Path, bool]:
        """The copy of a blob, and whether ``fetch`` has just made it, once for all threads.

        OSError if the disk is full.
        """
        file = self.folder / sha256
        lock = self._fetching.setdefault(sha256, threading.Lock())
        with lock:
            try:
                os.utime(file)  # records its use, for cleaning
            except FileNotFoundError:
                with scratch(self._scratch, _FETCHING) as folder:
                    fetch(folder / sha256)
                    self.folder.mkdir(parents=True, exist_ok=True)
                    (folder / sha256).replace(file)
                return file, True
        return file, False

    def sweep(self) -> None:
        """Remove copies that killed processes left incomplete."""
        sweep(self._scratch, _FETCHING)

    def gc(self, older_than: float, *, dry_run: bool = False) -> Tally:
        """Remove copies unused for so many seconds; return a tally of them."""
        tally = Tally()
        for copy in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if copy.stat().st_mtime <= time.time() - older_than:
                    tally.add(copy)
                    if not dry_run:
                        copy.unlink()
        return tally
