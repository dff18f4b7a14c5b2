"""Cancels work from another thread, such as an import after Ctrl-C or a build."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from fabric.errors import Cancelled

if TYPE_CHECKING:
    import subprocess

T = TypeVar("T")

#: Seconds between two checks of a token while a thread waits for something else.
TICK = 0.1


def no_check() -> None:
    """A check that never raises, for work that cannot be cancelled."""


class TooSlow(Exception):
    """Work did not end in time."""


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


def abandonable(
    work: Callable[[Callable[[], None]], T],
    cancel: CancelToken,
    name: str,
    seconds: float = float("inf"),
) -> T:
    """What ``work`` returns in a thread of its own, of that name.

    Cancelled soon after ``cancel`` is set, TooSlow after so many seconds.  The thread then
    goes on until ``work`` calls the check that it is given, or ends.
    """
    ended, given_up = threading.Event(), CancelToken()
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work(given_up.check))
        except Exception as error:  # noqa: BLE001  raised below, unless given up
            errors.append(error)
        ended.set()

    until = time.monotonic() + seconds
    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        while not ended.wait(max(0.0, min(TICK, until - time.monotonic()))):
            cancel.check()
            if time.monotonic() >= until:
                raise TooSlow
    finally:
        given_up.set()
    if errors:
        raise errors[0]
    return results[0]
