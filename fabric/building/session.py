"""Manages the part of a workspace that belongs to one process: scratch, locks, holds, trash.

The directory of a session is locked while its process lives, so that another process can tell
which sessions are left over.  A new session and a sweep exclude each other by the lock "sessions".
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from fabric.building.holds import Holds
from fabric.building.reaper import Reaper
from fabric.building.tree import open_up, remove
from fabric.host.cancel import TICK, CancelToken
from fabric.host.locks import Locks

#: Seconds between the first two looks at a lock that another holds.
_SOON = 0.001


class Session:
    """A process in the workspace at ``root``, which must exist."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locks = Locks(root / "lock")
        self.holds = Holds(root / "held")
        self._numbers = itertools.count()
        with self.locked("sessions"):
            (root / "tmp").mkdir(exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root / "tmp"))
            self._alive = self.locks.take(self.path.name)
        self.reaper = Reaper(self.path / "trash")

    def scratch(self, end: str = "") -> Path:
        """A new empty directory of this process, until it is discarded or the process ends.

        Its name ends in ``end``.
        """
        path = self.unused_name()
        path = path.with_name(path.name + end)
        path.mkdir()
        return path

    def unused_name(self) -> Path:
        """A new path on the disk of the layers, which no other caller gets."""
        return self.path / str(next(self._numbers))

    def discard(self, path: Path) -> None:
        """Rename a tree into the trash, which the reaper deletes."""
        with suppress(FileNotFoundError):
            open_up(path)
            path.rename(self.reaper.trash / str(next(self._numbers)))
            self.reaper.wake()

    def hold(self, *names: str) -> None:
        """Keep these layers, merged trees or source trees until this thread's build ends."""
        self.holds.hold(names)

    def exclusively(self, name: str) -> AbstractContextManager[bool]:
        """Whether no build of any process uses the tree ``name``; then none can meanwhile."""
        return self.holds.exclusively(name)

    @contextmanager
    def locked(
        self,
        name: str,
        cancel: CancelToken | None = None,
        waits: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Hold the lock ``name`` among all threads and processes of this workspace.

        While another holds it, ``waits`` is called once, and Cancelled is raised if ``cancel`` is
        set.
        """
        pause = _SOON  # most holders just copy a few files
        while (fd := self.locks.take(name, wait=cancel is None)) is None:
            assert cancel is not None
            if pause == _SOON:
                waits()
            cancel.pause(pause)
            pause = min(2 * pause, TICK)
        try:
            yield
        finally:
            os.close(fd)

    def left_over(self) -> Iterator[Path]:
        """The directories of ended sessions: those whose lock is free."""
        for session in list((self.root / "tmp").iterdir()):
            fd = self.locks.take(session.name)
            if fd is not None:
                yield session
                os.close(fd)

    def close(self, patience: float = 1.0) -> None:
        """Delete the directory for so many seconds; the next sweep deletes the rest."""
        if self._alive is not None:
            until = time.monotonic() + patience
            self.reaper.close()
            with suppress(OSError):
                remove(self.path, stop=lambda: time.monotonic() > until)
            os.close(self._alive)
            self._alive = None
            self.holds.close()
