"""Writes to the user's terminal: escapes untrusted text, and keeps live rows below the output.

`install` replaces ``sys.stdout`` and ``sys.stderr`` by an `Output`, so every ``print`` is escaped.
Binary output for programs goes to ``sys.stdout.buffer``.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TextIO, cast

from fabric.errors import FabricError
from fabric.host.progress import SHARE, share_of

#: A row of an `Area` and its style, a key of _STYLES or "".
Row = tuple[str, str]

#: Seconds between two drawings when nothing is printed, and the least between any two.
TICK = 0.25
SHORTEST = 0.1
#: Seconds between two lines about the same progress where rows cannot be redrawn.
AGAIN = 30.0
#: Seconds that closing waits for a terminal that accepts no output.
STUCK = 1.0
#: Most characters of a sequence whose end `clean_pieces` waits for.
_LONGEST = 64 * 1024

_STYLES = {
    "bold": "1",
    "dim": "2",
    "yellow": "33",
    "cyan": "36",
    "bold red": "1;31",
    "bold green": "1;32",
}
#: Columns of a bar beside a text, and the width from which there is one.
BAR, _WIDE = 12, 60
#: Around a drawing, for terminals that can update at once (DEC mode 2026).
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_ASCII = str.maketrans("━╌…", "=-~")
_NO_TERMINAL = ("", "dumb", "unknown")

# Colours, positions (CSI), titles, clipboards and links (OSC), and other strings (DCS, SOS, ...).
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
)
# Other characters that a terminal acts upon or shows elsewhere: C0, C1, directions, line
# separators, tags, and bytes that are no text.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

#: Thread -> its last printed progress without the share, and when that was.
_printed: dict[int, tuple[str, float]] = {}

_BEGUN = re.compile("[\x1b\x90\x98\x9b\x9d-\x9f\r]")


class OutputError(FabricError):
    """Standard output or standard error cannot be written."""


def printable(text: str) -> str:
    """``text`` without escape sequences; other control characters become ``\\x1b`` and the like.

    Tabs and ends of lines stay, and a carriage return ends a line.
    """
    if not _CONTROL.search(text):
        return text
    text = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """As `printable`, for a cell of a table: ends of lines and tabs are escaped, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def clean_pieces(pieces: Iterable[bytes]) -> Iterator[str]:
    """A log as printable text; a sequence may be split over pieces."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    held = ""  # the possible beginning of a sequence
    for piece in pieces:
        text = held + decode(piece)
        begun = _BEGUN.search(text, text.rfind("\n") + 1)
        cut = begun.start() if begun and len(text) - begun.start() < _LONGEST else len(text)
        held = text[cut:]
        yield printable(text[:cut])
    yield printable(held + decode(b"", True))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python names it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def width_of(text: str) -> int:
    """The number of columns of ``text``."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    import unicodedata  # few texts need it

    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fitted(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, with an ellipsis where it is cut."""
    if width_of(text) <= width:
        return text
    kept, taken = "", 1
    for char in text:
        taken += _columns(char)
        if taken > width:
            break
        kept += char
    return kept.rstrip() + "…" if width > 0 else ""


def bar(share: float, width: int) -> str:
    """A bar of which ``share``, from 0 to 1, is filled."""
    filled = int(width * min(max(share, 0.0), 1.0))
    return "━" * filled + "╌" * (width - filled)


def styled(text: str, style: str) -> str:
    """``text`` in a style, unless NO_COLOR is set."""
    if style not in _STYLES or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def is_terminal(stream: TextIO) -> bool:
    """Whether rows of the stream can be redrawn in place."""
    return stream.isatty() and os.environ.get("TERM", "") not in _NO_TERMINAL


class Output(io.TextIOWrapper):
    """Standard output or error, escaped.  OutputError if writing fails."""

    def write(self, text: str) -> int:
        clean = printable(text)
        area = Area.shown
        if area is not None and self.isatty():
            area.above(clean)
            return len(text)
        try:
            super().write(clean)
        except OSError as error:
            raise _unwritable(self.fileno(), error) from error
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _unwritable(self.fileno(), error) from error


def write_bytes(data: bytes) -> None:
    """Write ``data`` unescaped to standard output, for programs.  OutputError if that fails."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _unwritable(1, error) from error


def _unwritable(fd: int, error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):  # the reader closed it
        return error
    what = "standard error" if fd == 2 else "standard output"
    return OutputError(f"{what} cannot be written: {error.strerror}")


def install() -> None:
    """Replace standard output and error by `Output`; one that is closed becomes /dev/null."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file opened would get its number
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    sys.stdout = _output(sys.stdout, 1)
    sys.stderr = _output(sys.stderr, 2)
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, _stopped)


def _stopped(number: int, frame: object) -> None:  # noqa: ARG001
    """On Ctrl-Z: remove the rows before stopping, and draw them again afterwards."""
    area = Area.shown
    try:
        if area is not None:
            area.withdraw()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # continues here
    finally:
        signal.signal(number, _stopped)
        if area is not None:
            area.come_back()


def _output(stream: TextIO | None, fd: int) -> Output:
    if stream is None:
        stream = open(fd, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    encoding, by_line = stream.encoding, stream.isatty() or fd == 2
    binary = cast("io.TextIOWrapper", stream).detach()
    return Output(binary, encoding, errors="backslashreplace", line_buffering=by_line)


class Area:
    """Rows at the bottom of a terminal, redrawn as time passes.  At most one exists.

    The cursor rests at the beginning of the first row.  A terminal keeps it there when it is
    resized, also if it wraps the rows anew, so everything below can be erased.
    """

    shown: ClassVar[Area | None] = None

    def __init__(self, out: TextIO, picture: Callable[[int, int], list[Row]] | None = None) -> None:
        """``picture(columns, rows)`` gives at most that many rows.

        Without it, only the rows of `doing` are shown, and `settled` closes the area.
        """
        self._fd = out.fileno()
        self._utf8 = codecs.lookup(out.encoding).name == "utf-8"
        self._picture = picture
        self._lock = threading.Lock()
        self._news: list[str] = []
        self._begun = ""  # a line without its end yet
        self._activity: dict[int, tuple[str, float]] = {}  # thread -> its activity, since when
        self._last: tuple[list[Row], int] = ([], 0)
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._welcome = threading.Event()  # rows may be drawn
        self._welcome.set()
        self._away = threading.Event()  # the rows are erased
        out.flush()
        Area.shown = self
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()

    def above(self, text: str) -> None:
        """Print ``text``, which is printable, above the rows."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            self._news += lines

    def changed(self) -> None:
        """The picture has changed: draw it together with the text printed since."""
        if self._news:
            self._wake.set()

    def doing(self, text: str) -> None:
        """Show the activity of the calling thread in a row, until its next one."""
        thread, text = threading.get_ident(), one_line(text)
        with self._lock:
            former, since = self._activity.get(thread, ("", 0.0))
            if former.partition(": ")[0] != text.partition(": ")[0]:
                since = time.monotonic()
            self._activity[thread] = (text, since)

    def settled(self) -> None:
        """Remove the activities of all threads."""
        if self._activity:
            with self._lock:
                self._activity.clear()
        if self._picture is None:
            self.close()

    def withdraw(self) -> None:
        """Erase the rows until `come_back`.  Takes no lock, so a signal handler may call it."""
        self._welcome.clear()
        self._wake.set()
        self._away.wait(STUCK)

    def come_back(self) -> None:
        """Draw rows again, at the present position of the cursor."""
        self._welcome.set()

    def close(self) -> None:
        """Erase the rows; printed text stays.  May be called again if Ctrl-C interrupted it."""
        self._closed.set()
        self._wake.set()
        self._thread.join(STUCK)
        Area.shown = None

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            while not self._closed.wait(SHORTEST):
                if not self._welcome.is_set():
                    self._write("\r\x1b[J\x1b[?25h")
                    self._last = ([], self._last[1])
                    self._away.set()
                    self._welcome.wait()
                    self._away.clear()
                self._draw()
                self._wake.wait(TICK - SHORTEST)
                self._wake.clear()
            self._draw(last=True)

    def _draw(self, *, last: bool = False) -> None:
        size = os.get_terminal_size(self._fd)
        # some terminals report a size of 0
        width, height = (size.columns or 80) - 1, max(1, (size.lines or 24) - 1)
        with self._lock:
            news, self._news = self._news, []
            if last and self._begun:
                news.append(self._begun)
            activity = list(self._activity.items())
        rows: list[Row] = []
        if not (last or self._is_behind()):
            now = time.monotonic()
            alive = {thread.ident for thread in threading.enumerate()}
            rows = [(_doing(*what, now, width), "cyan") for id, what in activity if id in alive]
            rows = rows[: height // 2]
            if self._picture is not None:
                rows += self._picture(width, height - len(rows))
            rows = [(fitted(text, width), style) for text, style in rows[:height]]
        if not (news or last) and (rows, width) == self._last:
            return
        self._last = (rows, width)
        out = [_BEGIN, "\x1b[?25l" if rows else "\x1b[?25h", "\r", "\x1b[J" if news else ""]
        out += [f"{line}\n" for line in news]
        out.append("\n".join(f"\x1b[K{styled(text, style)}" for text, style in rows))
        out.append("\x1b[J\r")
        if len(rows) > 1:
            out.append(f"\x1b[{len(rows) - 1}A")
        self._write("".join([*out, _END]))

    def _is_behind(self) -> bool:
        """Whether another process group, such as the shell's, is in the foreground."""
        try:
            return os.tcgetpgrp(self._fd) != os.getpgrp()
        except OSError:  # it is not our controlling terminal
            return False

    def _write(self, text: str) -> None:
        if not self._utf8:
            text = text.translate(_ASCII)
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._fd, data) :]


def _doing(text: str, since: float, now: float, width: int) -> str:
    seconds = f"  {now - since:.0f} s" if now - since >= 1 else ""
    share = share_of(text) if width >= _WIDE else None
    head = "  " if share is None else f"  {bar(share, BAR)}  "
    return f"{head}{fitted(text, width - len(head) - len(seconds))}{seconds}"


def progress(text: str) -> None:
    """Show progress, such as that of imports, on standard error.

    On a terminal, a thread's next line replaces its last one, except for warnings.  Elsewhere, a
    line that differs from its last one only in a share is printed now and then.
    """
    warning = text.startswith("warning: ") or ": warning: " in text
    if warning or not is_terminal(sys.stderr):
        if warning or _is_news(text):
            print(text, file=sys.stderr, flush=True)
    else:
        (Area.shown or Area(sys.stderr)).doing(text)


def _is_news(text: str) -> bool:
    share = SHARE.search(text)
    head = (text[: share.start()] if share else text).rstrip(": ")
    thread, now = threading.get_ident(), time.monotonic()
    former, at = _printed.get(thread, ("", 0.0))
    if share and head == former and now < at + AGAIN:
        return False
    _printed[thread] = (head, now)
    return True


def settled() -> None:
    """The work that `progress` reported is done."""
    if (area := Area.shown) is not None:
        area.settled()


def restore() -> None:
    """Restore the terminal."""
    if Area.shown is not None:
        Area.shown.close()
