"""Cancels work from another thread, such as an import after Ctrl-C or a build."""

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


#: Seconds between two checks of a token while a thread waits for something else.
TICK = 0.1


def no_check() -> None:
    """A check that never raises, for work that cannot be cancelled."""


class CancelToken:
    """Is set once; then work that checks it raises Cancelled, and its children are ended."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._children: set[int] = set()  # process groups

    def set(self) -> None:
        """Cancel: children are sent SIGTERM now, other work ends at its next `check`."""
        with self._lock:
            self._event.set()
            for group in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGTERM)

    def check(self) -> None:
        """Raise Cancelled if the token is set."""
        if self._event.is_set():
            raise Cancelled("interrupted")

    def pause(self, seconds: float) -> None:
        """Wait; raise Cancelled as soon as the token is set."""
        if self._event.wait(seconds):
            raise Cancelled("interrupted")

    @contextlib.contextmanager
    def child(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Wait for a child that leads a process group.

        The group is sent SIGTERM if the block raises, and by `set`, after which this raises
        Cancelled.
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
