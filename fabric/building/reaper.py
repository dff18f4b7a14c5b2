"""Deletes discarded trees while no build is disturbed.

On ext4 without a journal, creating files soon after many were deleted takes up to twenty times as
long; on a disk with online discard, deleting is as slow as writing.  So trees are only renamed into
the trash, and deleted in a pause between builds, or after a few seconds of building.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from fabric.building.tree import remove

#: Seconds without a build until deleting begins.
_PAUSE = 1.0
#: Seconds after which deleting begins although builds are running.
_LATE = 5.0


class Reaper:
    """Owns the directory ``trash``; its thread lives from the first `wake` to `close`."""

    def __init__(self, trash: Path) -> None:
        self.trash = trash
        trash.mkdir()
        self._change = threading.Condition()
        self._builds = 0
        self._idle_since = time.monotonic()
        self._filled: float | None = None  # when the first tree came into the empty trash
        self._closing = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Something was put into the trash."""
        with self._change:
            if self._filled is None:
                self._filled = time.monotonic()
                self._change.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
                self._thread.start()

    def enter(self) -> None:
        """A build begins."""
        with self._change:
            self._builds += 1

    def leave(self) -> None:
        """A build has ended."""
        with self._change:
            self._builds -= 1
            self._idle_since = time.monotonic()

    def close(self) -> None:
        """Stop the thread, also while it deletes."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            for path in list(self.trash.iterdir()):
                with suppress(OSError):  # the next worker tries again
                    remove(path, stop=lambda: self._closing)

    def _wait(self) -> bool:
        """Wait until it is time to delete; False when it is time to end."""
        with self._change:
            while not self._closing:
                if self._filled is None:
                    self._change.wait()
                    continue
                due = self._filled + _LATE
                if not self._builds:
                    due = min(due, self._idle_since + _PAUSE)
                if (left := due - time.monotonic()) <= 0:
                    break
                self._change.wait(min(left, _PAUSE))
            self._filled = None
            return not self._closing
