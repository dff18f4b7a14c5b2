"""Renders a build: live on a terminal, as plain lines in a pipe, as JSON for programs.

`BuildView` is the state to show, and a `Screen` shows it.  A screen decides nothing, and its state
can be lost at any time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

import msgspec

from fabric.errors import Cancelled, FabricError
from fabric.host.progress import share_of
from fabric.host.terminal import (
    BAR,
    Area,
    OutputError,
    Row,
    bar,
    fitted,
    is_terminal,
    one_line,
    printable,
    styled,
    width_of,
)

#: A terminal of at most so many rows does not show what comes next.
SMALL = 6


class RunningView(msgspec.Struct, frozen=True):
    """A step that is being built."""

    name: str
    worker: str
    phase: str
    began: float  # time.monotonic()
    expected: float  # seconds; 0: unknown
    log_size: int  # bytes


class BuildView(msgspec.Struct, frozen=True):
    """The state of a build.  Times are from time.monotonic(), so that shown durations advance."""

    title: str
    total: int  # steps to build
    done: int
    failed: int
    cached: int
    began: float
    ends: float  # expected; 0: unknown
    running: tuple[RunningView, ...] = ()
    waiting: str = ""  # why nothing runs, if nothing does
    next: tuple[str, ...] = ()  # names of the steps that begin next


class Screen(Protocol):
    """Shows a build."""

    def say(self, text: str, style: str = "") -> None: ...
    def event(self, kind: str, **facts: Any) -> None: ...
    def show(self, view: BuildView) -> None: ...
    def away(self) -> AbstractContextManager[None]: ...
    def close(self) -> None: ...


class PlainScreen(msgspec.Struct):
    """Prints lines, for pipes and logs of other tools."""

    out: TextIO = msgspec.field(default_factory=lambda: sys.stdout)

    def say(self, text: str, style: str = "") -> None:  # noqa: ARG002 - a pipe has no styles
        print(text, file=self.out, flush=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Nothing: events are for programs."""

    def show(self, view: BuildView) -> None:
        """Nothing: a pipe has no live part."""

    def away(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to restore."""


class JsonScreen(msgspec.Struct):
    """Prints one JSON object a line: {"event": KIND, "time": UTC, ...}."""

    out: TextIO = msgspec.field(default_factory=lambda: sys.stdout)

    def say(self, text: str, style: str = "") -> None:
        """Nothing: text is for people."""

    def event(self, kind: str, **facts: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        print(json.dumps({"event": kind, "time": at, **facts}), file=self.out, flush=True)

    def show(self, view: BuildView) -> None:
        """Nothing: programs read events."""

    def away(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to restore."""


class LiveScreen:
    """Shows a build on a terminal: text scrolls, and its state stays in the last rows."""

    def __init__(self) -> None:
        self._view: BuildView | None = None
        self._area = Area(sys.stdout, self._picture)

    def say(self, text: str, style: str = "") -> None:
        self._area.above(styled(printable(text), style) + "\n")

    def event(self, kind: str, **facts: Any) -> None:
        """Nothing: events are for programs."""

    def show(self, view: BuildView) -> None:
        self._view = view
        self._area.settled()
        self._area.changed()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Leave the terminal to a question, or to another program."""
        self._view = None
        self._area.close()
        try:
            yield
        finally:
            self._area = Area(sys.stdout, self._picture)

    def close(self) -> None:
        self._area.close()

    def _picture(self, width: int, height: int) -> list[Row]:
        return [] if self._view is None else draw(self._view, time.monotonic(), width, height)


class Board:
    """Shows changing lines: in place on a terminal; elsewhere prints them again on changes."""

    def __init__(self) -> None:
        self._last: list[str] = []
        self._area: Area | None = None

    def __enter__(self) -> Board:
        if is_terminal(sys.stdout):
            self._area = Area(sys.stdout, self._picture)
        return self

    def __exit__(self, *_: object) -> None:
        if self._area is not None:
            self._area.close()
            print("\n".join(self._last))

    def show(self, lines: list[str]) -> None:
        """Replace the shown lines."""
        if self._area is None and lines != self._last:
            print("\n".join(lines), flush=True)
        self._last = lines

    def _picture(self, width: int, height: int) -> list[Row]:  # noqa: ARG002 - the terminal cuts rows
        lines = [one_line(line) for line in self._last]
        if len(lines) > height:
            lines[height - 1 :] = [f"and {len(lines) - height + 1} lines more"]
        return [(line, "") for line in lines]


def draw(view: BuildView, now: float, width: int, height: int) -> list[Row]:
    """The rows of a build's state at the time ``now``, in at most ``height`` rows.

    The steps that run longest come first, so that rows keep their places.
    """
    rows: list[Row] = []
    if view.waiting and not view.running:
        rows.append((f"  {one_line(view.waiting)}  {duration(now - view.began)}", "yellow"))
    elif view.failed and view.running and not view.next:
        rows.append(("  a step failed, so no other begins", "yellow"))
    elif view.next and view.running and height > SMALL:
        rows.append((fitted(f"  next: {', '.join(map(one_line, view.next))}", width), "dim"))
    if view.total:
        rows.append((_summary(view, now, width), "bold"))
    running = sorted(view.running, key=lambda step: (step.began, step.worker, step.name))
    room = max(1, height - len(rows))
    if len(running) > room:
        rest = len(running) - room + 1
        running = running[: room - 1]
        rows.insert(0, (f"  and {rest} more", "cyan"))
    return [*((line, "cyan") for line in _steps(running, now, width)), *rows]


def _steps(running: list[RunningView], now: float, width: int) -> list[str]:
    """A row for each step.

    Without room, columns are left out: bars, the log's size, the phase, the expected time, and at
    last the worker.
    """
    names = [one_line(step.name) for step in running]
    some = [fitted(name, max(16, width // 3)) for name in names]
    workers = [fitted(one_line(step.worker), max(10, width // 4)) for step in running]
    times = [duration(max(0.0, now - step.began)) for step in running]
    expected = [
        f"{time} of ~{duration(step.expected)}" if step.expected >= 1 else time
        for time, step in zip(times, running, strict=True)
    ]
    phases = [one_line(step.phase) for step in running]
    logs = [f"{size(step.log_size)} log" for step in running]
    shares = [share_of(phase) for phase in phases]
    bars = [
        phase if share is None else f"{bar(share, BAR)} {phase}"
        for phase, share in zip(phases, shares, strict=True)
    ]
    narrow = max(4, width - 4 - max(map(len, times), default=0))
    few = [fitted(name, narrow) for name in names]
    lines: list[str] = []
    for columns in (
        (some, bars, expected, logs, workers),
        (some, phases, expected, logs, workers),
        (some, phases, expected, workers),
        (some, expected, workers),
        (some, times, workers),
        (few, times),
    ):
        lines = [f"  {line}" for line in table(zip(*columns, strict=True))]
        if all(width_of(line) <= width for line in lines):
            break
    return lines


def _summary(view: BuildView, now: float, width: int) -> str:
    """The progress, with as many details as ``width`` allows."""
    of = f"{view.done} of {view.total}"
    short = f"{view.done}/{view.total}"
    cached = [f"{view.cached} cached"] if view.cached else []
    failed = [f"{view.failed} failed"] if view.failed else []
    took = [duration(now - view.began)]
    ends = max(0.0, view.ends - now)
    left = [f"about {duration(ends)} left"] if ends else []
    brief = [f"~{duration(ends)} left"] if ends else []
    line = ""
    for columns, facts in (
        (width // 3 if width > 120 else 24, [f"{of} built", *cached, *failed, *took, *left]),
        (12, [f"{of} built", *cached, *failed, *took, *left]),
        (0, [f"{of} built", *cached, *failed, *took, *left]),
        (0, [f"{of} built", *failed, *took, *left]),
        (0, [of, *failed, *took, *brief]),
        (0, [of, *failed, *(brief or took)]),
        (0, [short, *(brief or took)]),
        (0, [short]),
    ):
        picture = f"{bar(view.done / view.total, columns)}  " if columns else ""
        line = f"  {picture}{', '.join(facts)}"
        if width_of(line) <= width:
            break
    return line


def open_screen(as_json: bool) -> Screen:
    """The screen for standard output."""
    if as_json:
        return JsonScreen()
    if is_terminal(sys.stdout):
        return LiveScreen()
    return PlainScreen()


@contextlib.contextmanager
def opened_screen(as_json: bool) -> Iterator[Screen]:
    """As `open_screen`; an error inside becomes an event before the screen is closed."""
    screen = open_screen(as_json)
    try:
        yield screen
    except KeyboardInterrupt:
        screen.event("interrupted", exit_code=Cancelled.exit_code)
        raise
    except FabricError as error:
        if not isinstance(error, OutputError):
            screen.event("failed", message=str(error), exit_code=error.exit_code)
        raise
    finally:
        screen.close()


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def ago(seconds: float) -> str:
    """ "12 s", "3 min", "2 h", "5 days": coarse, for tables."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: float) -> str:
    """Bytes for people: "0 B", "12 kB", "3.4 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def table(rows: Iterable[Iterable[str]]) -> list[str]:
    """Rows of cells as aligned lines."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(width_of(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(c + " " * (w - width_of(c)) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
