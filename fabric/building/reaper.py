"""Deletes what was thrown away, when it disturbs nobody.

On ext4 without a journal, files created soon after many were deleted cost up to twenty times as
much.  So trees are only renamed into the trash while builds run, and deleted in the pauses
between them, when room gets scarce, or at the end.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from fabric.building.tree import remove

#: Seconds without a build until deleting begins.
_PAUSE = 2.0
#: Seconds between two looks at the free space while builds run.
_LOOK = 10.0


def scarce(path: Path) -> bool:
    """Whether the file system of ``path`` is nearly full: 10 % free or less, at most 10 GiB."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize < min(info.f_blocks * info.f_frsize // 10, 10 << 30)


class Reaper:
    """Owns the directory ``trash``; its thread lives from the first `wake` to `close`."""

    def __init__(self, trash: Path) -> None:
        self.trash = trash
        trash.mkdir()
        self._change = threading.Condition()
        self._builds = 0
        self._idle_since = time.monotonic()
        self._work = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something new in the trash."""
        with self._change:
            if not self._work:
                self._work = True
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
        """Stop the thread.  What is still in the trash goes with its session."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._may_delete():
            for path in list(self.trash.iterdir()):
                if self._closing:
                    return
                remove(path)

    def _may_delete(self) -> bool:
        """Wait until deleting disturbs nobody; False when it is time to end."""
        with self._change:
            while not self._closing:
                if not self._work:
                    self._change.wait()
                elif self._builds:
                    if scarce(self.trash):
                        break
                    self._change.wait(_LOOK)
                elif (left := self._idle_since + _PAUSE - time.monotonic()) > 0:
                    self._change.wait(left)
                else:
                    break
            self._work = False
            return not self._closing
