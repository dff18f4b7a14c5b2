"""Caches remote blobs on this machine; a removed copy is fetched again."""

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
        """The copy of a blob, and whether it is new: ``fetch`` has made it, once for all threads.

        OSError if there is no room.
        """
        file = self.folder / sha256
        lock = self._fetching.setdefault(sha256, threading.Lock())
        with lock:
            try:
                os.utime(file)  # it is of use, so cleaning spares it
            except FileNotFoundError:
                with scratch(self._scratch, _FETCHING) as folder:
                    fetch(folder / sha256)
                    self.folder.mkdir(parents=True, exist_ok=True)
                    (folder / sha256).replace(file)
                return file, True
        return file, False

    def sweep(self) -> None:
        """Remove what killed processes have left half fetched."""
        sweep(self._scratch, _FETCHING)

    def gc(self, older_than: float, *, dry_run: bool = False) -> Tally:
        """Remove what was unused for so many seconds.  Return what was removed."""
        tally = Tally()
        for copy in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if copy.stat().st_mtime <= time.time() - older_than:
                    tally.add(copy)
                    if not dry_run:
                        copy.unlink()
        return tally
