"""Runs a program on a pseudo-terminal, and relays input and output.

On the user's own terminal, the program could read later input, or insert input.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from fabric.building import devices

#: Most bytes relayed at once.
_PIECE = 65536


class Terminal:
    """A new terminal in place of the one among our standard files; close it, or use ``with``.

    Standard files that are not terminals stay as they are.
    """

    def __init__(self) -> None:
        self._shown = [fd for fd in range(3) if os.isatty(fd)]
        self._ours = self._theirs = -1
        if self._shown:
            self._ours, self._theirs = os.openpty()
            os.set_blocking(self._ours, False)
            settings = termios.tcgetattr(self._shown[0])
            termios.tcsetattr(self._theirs, termios.TCSANOW, settings)
            self._resize()

    @property
    def place(self) -> str | None:
        """The terminal's path, if standard input is a terminal; a program may make it its own."""
        return os.ttyname(self._theirs) if 0 in self._shown else None

    def run(self, command: Sequence[str], pass_fds: Sequence[int]) -> int:
        """Run ``command`` in a session of its own, and return its exit status."""
        files = [self._theirs if fd in self._shown else fd for fd in range(3)]
        process = devices.starting(
            lambda: subprocess.Popen(
                command,
                stdin=files[0],
                stdout=files[1],
                stderr=files[2],
                pass_fds=pass_fds,
                start_new_session=True,
            )
        )
        with process:
            try:
                if self._shown:
                    os.close(self._theirs)
                    self._theirs = -1
                    with self._raw(), _on_resize(self._resize):
                        self._relay()
                return process.wait()
            except BaseException:
                process.kill()
                raise

    def _relay(self) -> None:
        """Relay input and output until no process has the new terminal open."""
        typed = b""
        poll = select.poll()
        if 0 in self._shown:
            poll.register(0, select.POLLIN)
        while True:
            poll.register(self._ours, select.POLLIN | (select.POLLOUT if typed else 0))
            events = dict(poll.poll())
            if 0 in events and not typed:
                typed = os.read(0, _PIECE)
                if not typed:  # hung up
                    return
            heard = events.get(self._ours, 0)
            if heard & select.POLLOUT:
                typed = typed[os.write(self._ours, typed) :]
            if heard & (select.POLLIN | select.POLLHUP):
                try:
                    shown = os.read(self._ours, _PIECE)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    return
                while shown:
                    shown = shown[os.write(self._shown[-1], shown) :]

    @contextmanager
    def _raw(self) -> Iterator[None]:
        """Set the user's terminal to raw mode; the new one turns keys into signals."""
        if 0 not in self._shown:
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def _resize(self) -> None:
        size = fcntl.ioctl(self._shown[0], termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        for fd in (self._ours, self._theirs):
            if fd >= 0:
                os.close(fd)
        self._ours = self._theirs = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _on_resize(resize: Callable[[], None]) -> Iterator[None]:
    """Call ``resize`` when the user's terminal is resized; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def changed(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        resize()

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
