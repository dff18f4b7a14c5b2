"""Records the trees that builds of a process use, so that no process removes them meanwhile.

Locks cost time, and the next build mostly uses the same trees.  So a lock outlives its build, until
this process itself removes the tree.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fabric.host.locks import Locks


class Holds:
    """The trees that this process holds, by name; all processes use the same file ``path``."""

    def __init__(self, path: Path) -> None:
        self._locks = Locks(path)
        self._fd = self._locks.open()  # holds all locks of this process
        self._mutex = threading.Lock()
        self._used: dict[str, float] = {}  # name -> when it was last requested
        self._builds: dict[int, set[str]] = {}  # thread -> the names that its build uses

    @property
    def used(self) -> Mapping[str, float]:
        """The names held, and when (Unix time) each was last requested."""
        return self._used

    @contextmanager
    def build(self) -> Iterator[None]:
        """Around a build: it uses all names that its thread holds meanwhile."""
        thread = threading.get_ident()
        with self._mutex:
            self._builds[thread] = set()
        try:
            yield
        finally:
            with self._mutex:
                del self._builds[thread]

    def hold(self, names: Collection[str]) -> None:
        """Hold these at least until this thread's build ends."""
        with self._mutex:
            if (using := self._builds.get(threading.get_ident())) is not None:
                using.update(names)
            for name in names:
                if name not in self._used:
                    self._locks.share(self._fd, name)
            self._used |= dict.fromkeys(names, time.time())

    @contextmanager
    def exclusively(self, name: str) -> Iterator[bool]:
        """Whether no build uses ``name`` and no other process holds it; then none can meanwhile."""
        with self._mutex:
            used = any(name in using for using in self._builds.values())
            if used or not self._locks.claim(self._fd, name):
                yield False
                return
            try:
                yield True
            finally:
                self._locks.release(self._fd, name)
                self._used.pop(name, None)

    def close(self) -> None:
        """Release everything."""
        os.close(self._fd)
