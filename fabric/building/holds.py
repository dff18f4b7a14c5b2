"""Records the trees that builds of a process use, so that no process removes them meanwhile.

Locks cost time, and the next build mostly uses the same things.  Therefore a lock outlives its
build, until this process itself wants to remove the thing.
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
    """What this process holds, by name; others hold theirs with the same file ``path``."""

    def __init__(self, path: Path) -> None:
        self._locks = Locks(path)
        self._fd = self._locks.open()  # has all locks of this process
        self._mutex = threading.Lock()
        self._used: dict[str, float] = {}  # what is held -> when it was last asked for
        self._builds: dict[int, set[str]] = {}  # thread -> what its build uses

    @property
    def used(self) -> Mapping[str, float]:
        """What is held, and when (Unix time) it was last asked for."""
        return self._used

    @contextmanager
    def build(self) -> Iterator[None]:
        """Around a build: what its thread holds, it uses until the end."""
        thread = threading.get_ident()
        with self._mutex:
            self._builds[thread] = set()
        try:
            yield
        finally:
            with self._mutex:
                del self._builds[thread]

    def hold(self, names: Collection[str]) -> None:
        """Have these stay at least until this thread's build ends."""
        with self._mutex:
            if (using := self._builds.get(threading.get_ident())) is not None:
                using.update(names)
            for name in names:
                if name not in self._used:
                    self._locks.share(self._fd, name)
            self._used |= dict.fromkeys(names, time.time())

    @contextmanager
    def exclusively(self, name: str) -> Iterator[bool]:
        """Whether no build uses ``name`` and no other process holds it; if so, none can now."""
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
        """Let go of everything."""
        os.close(self._fd)
