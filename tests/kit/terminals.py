"""A program on a pseudo-terminal, and the rows that it shows."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte
from waiting import until

#: What fish asks of keyboards, which pyte would show in part; and the beginning of any sequence.
_KEYBOARD = re.compile(rb"\x1b\[[<=>?][\d;]*u")
_PART = re.compile(rb"\x1b(\[[<=>?]?[\d;]*)?\Z")
#: Begin and end of a synchronized update of the terminal.
_BEGIN, _END = b"\x1b[?2026h", b"\x1b[?2026l"


class Terminal:
    """Runs ``command`` on a terminal of its own."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        columns: int = 80,
        rows: int = 24,
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._seen: list[str] = []
        self._part = b""  # a sequence whose end is not here yet
        #: the raw output
        self.raw = b""
        self._ours, theirs = os.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environ, "TERM": environ.get("TERM", "xterm")},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def lines(self) -> list[str]:
        """The rows of the last complete picture, without the empty ones below."""
        with self._lock:
            return self._seen

    def sees(self, wanted: Callable[[list[str]], bool], what: str, seconds: float = 30) -> None:
        """Wait until the rows meet a condition."""
        try:
            until(lambda: wanted(self.lines()), seconds)
        except AssertionError:
            raise AssertionError("\n".join([f"nobody saw {what}, but", *self.lines()])) from None

    def row(self, text: str) -> str:
        """The one row that has ``text``; "" if there is none.  AssertionError if there are more."""
        found = [line for line in self.lines() if text in line]
        assert len(found) < 2, "\n".join(["stale:", *self.lines()])
        return found[0] if found else ""

    def resize(self, columns: int, rows: int = 24) -> None:
        """Resize the terminal."""
        with self._lock:
            self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    def types(self, text: str) -> None:
        """Type a text; ``\\n`` is Enter, ``\\x1a`` Ctrl-Z."""
        os.write(self._ours, text.encode())

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def ends(self, seconds: float = 60) -> int:
        """Its exit code, after all its output was read."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join(10)
        os.close(self._ours)

    def _set_size(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the program has ended
                return
            with self._lock:
                self.raw += data
                data = self._part + data
                part = _PART.search(data)
                self._part = part[0] if part else b""
                self._stream.feed(_KEYBOARD.sub(b"", data.removesuffix(self._part)))
                if self.raw.rfind(_BEGIN) <= self.raw.rfind(_END):
                    self._seen = [line.rstrip() for line in self._screen.display]
                    while self._seen and not self._seen[-1]:
                        self._seen.pop()
