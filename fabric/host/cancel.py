"""Cancels work from another thread; Ctrl-C reaches an import this way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric.errors import Cancelled

if TYPE_CHECKING:
    import subprocess


#: Seconds between two checks of a token by what waits for something else.
TICK = 0.1


def no_check() -> None:
    """A check of what cannot be cancelled: it never raises."""


class CancelToken:
    """Set once by whoever gives up; all work under its hand ends soon with Cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._children: set[int] = set()  # process groups

    def set(self) -> None:
        """End everything: children at once, the rest at its next `check`."""
        with self._lock:
            self._event.set()
            for group in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGTERM)

    def check(self) -> None:
        """Raise Cancelled if it is over."""
        if self._event.is_set():
            raise Cancelled("interrupted")

    def pause(self, seconds: float) -> None:
        """Wait, but raise Cancelled as soon as it is over."""
        if self._event.wait(seconds):
            raise Cancelled("interrupted")

    @contextlib.contextmanager
    def child(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Watch over a child that leads a process group, until it has ended.

        It is killed if this block is left by an exception; after `set` it raises Cancelled.
        """
        with self._lock:
            self._children.add(process.pid)
        try:
            self.check()
            yield
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            with self._lock:
                self._children.discard(process.pid)
        self.check()
