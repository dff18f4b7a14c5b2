"""What a build looks like: live on a terminal, plain lines in a pipe, JSON for programs.

`BuildView` is what there is to show, `Screen` is where it goes.  A screen never decides
anything and keeps nothing that it could not lose.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import msgspec

if TYPE_CHECKING:  # rich is imported when there is a terminal, it takes a while
    from rich.console import Console, Group
    from rich.live import Live


class RunningView(msgspec.Struct, frozen=True):
    """One step that is being built."""

    name: str
    worker: str
    phase: str
    seconds: float
    expected: float  # 0: not known
    log_size: int  # bytes


class BuildView(msgspec.Struct, frozen=True):
    """A build at one moment."""

    title: str
    total: int  # steps to build
    done: int
    failed: int
    cached: int
    seconds: float
    left: float  # expected seconds; 0: not known
    running: tuple[RunningView, ...] = ()
    waiting: str = ""  # why nothing runs, if nothing does


class Screen(Protocol):
    """Where a build is shown."""

    def say(self, text: str, style: str = "") -> None: ...
    def event(self, kind: str, **facts: Any) -> None: ...
    def show(self, view: BuildView) -> None: ...
    def close(self) -> None: ...


class PlainScreen(msgspec.Struct):
    """Lines, for pipes and logs of other tools."""

    out: TextIO = msgspec.field(default_factory=lambda: sys.stdout)

    def say(self, text: str, style: str = "") -> None:  # noqa: ARG002  a pipe has no style
        print(text, file=self.out, flush=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Nothing: events are for programs."""

    def show(self, view: BuildView) -> None:
        """Nothing: a pipe has no live part."""

    def close(self) -> None:
        """Nothing to restore."""


class JsonScreen(msgspec.Struct):
    """One JSON object a line on standard output: {"event": KIND, ...}."""

    out: TextIO = msgspec.field(default_factory=lambda: sys.stdout)

    def say(self, text: str, style: str = "") -> None:
        """Nothing: prose is for people."""

    def event(self, kind: str, **facts: Any) -> None:
        print(json.dumps({"event": kind, **facts}), file=self.out, flush=True)

    def show(self, view: BuildView) -> None:
        """Nothing: programs follow the events."""

    def close(self) -> None:
        """Nothing to restore."""


class LiveScreen:
    """A terminal: news scrolls, the state of the build stays at the bottom."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console: Console = Console(highlight=False)
        self._view: BuildView | None = None
        self._shown_at = 0.0
        self._live: Live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, markup=False, soft_wrap=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Nothing: events are for programs."""

    def show(self, view: BuildView) -> None:
        self._view, self._shown_at = view, time.monotonic()

    def close(self) -> None:
        self._view = None
        self._live.stop()

    def _draw(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        if self._view is None:
            return Group()
        since = time.monotonic() - self._shown_at
        width, height = self._console.size
        lines = [Text(line[:width], style=style) for line, style in draw(self._view, since)]
        return Group(*lines[: max(2, height - 2)])


class Board:
    """Something to look at that changes: in place on a terminal, else again when it did."""

    def __init__(self) -> None:
        self._last: list[str] = []
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, lines: list[str]) -> None:
        """This is how it stands."""
        if self._live is not None:
            from rich.text import Text

            self._live.update(
                Text("\n".join(lines), overflow="ellipsis", no_wrap=True), refresh=True
            )
        elif lines != self._last:
            print("\n".join(lines), flush=True)
        self._last = lines


def draw(view: BuildView, since: float = 0.0) -> Iterable[tuple[str, str]]:
    """The live part as (line, style), ``since`` seconds after the view was made."""
    for step in sorted(view.running, key=lambda step: (step.worker, step.name)):
        seconds = step.seconds + since
        expected = f" of ~{duration(step.expected)}" if step.expected >= 1 else ""
        yield (
            f"  {step.name:<28.28} {step.phase:<10.10} {duration(seconds)}{expected:<10}"
            f"  {size(step.log_size):>8} log   {step.worker}",
            "cyan",
        )
    if view.waiting and not view.running:
        yield f"  {view.waiting}", "yellow"
    if not view.total:
        return
    width = 24
    filled = width * view.done // view.total
    facts = [f"{view.done} of {view.total} built"]
    if view.cached:
        facts.append(f"{view.cached} cached")
    if view.failed:
        facts.append(f"{view.failed} failed")
    facts.append(duration(view.seconds + since))
    if view.left:
        facts.append(f"about {duration(max(0.0, view.left - since))} left")
    yield f"  {'━' * filled}{'╌' * (width - filled)}  {', '.join(facts)}", "bold"


def open_screen(as_json: bool) -> Screen:
    """The screen for where standard output goes."""
    if as_json:
        return JsonScreen()
    if sys.stdout.isatty():
        return LiveScreen()
    return PlainScreen()


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
    cells = [tuple(row) for row in rows]
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
