"""What the timeline of a build shows: lanes, bars, lines between them, and curves of load."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256

from fabric.client.render import duration
from fabric.client.request import OVER
from fabric.web.lanes import Load, scale
from fabric.web.page import View
from fabric.web.pages.facts import Count, RequestRow

#: Seconds that are worth a word.
WORTH = 1.0
#: Seconds for which the browser is told of an attempt that has ended.
RECENT = 120.0
#: Points of the curves of load.
POINTS = 800
#: Classes of phases by a part of their names; each has a color.
KINDS = ("fetch", "configure", "test", "install", "strip", "store")


class PhaseRow(View, frozen=True, kw_only=True):
    """A phase of an attempt."""

    name: str
    began: float  # seconds since the build was submitted
    seconds: float

    @property
    def looks(self) -> str:
        """The class of its color."""
        return next((kind for kind in KINDS if kind in self.name), "build")


class Bar(View, frozen=True, kw_only=True):
    """An attempt, or several short ones of a slot.  Times are seconds."""

    key: str  # of the step; of several, of the first
    fence: str
    name: str
    kind: str
    worker: str
    result: str  # "running", or as `AttemptInfo.result`
    began: float  # since the build was submitted
    seconds: float
    phases: tuple[PhaseRow, ...] = ()
    waited: float = 0.0  # for a worker, since the last thing that it needed had ended
    waited_after: str = ""  # what that was
    critical: bool = False
    message: str = ""
    count: int = 1  # attempts that are drawn as this one

    @property
    def id(self) -> str:
        """Unique on a page."""
        return f"{self.key[:16]}-{self.fence}"

    @property
    def words(self) -> str:
        """All of it, in words; a line for each fact."""
        if self.count > 1:
            return f"{self.count:,} attempts, from {self.name} on\nin {duration(self.seconds)}"
        kind = f"{self.kind} " if self.kind not in ("", "chunk") else ""
        how = {"running": "running", "done": f"done in {duration(self.seconds)}"}
        how_long = how.get(self.result, f"{self.result} after {duration(self.seconds)}")
        lines = [f"{kind}{self.name}: {how_long}", f"on {self.worker}"]
        if self.message:
            lines.append(self.message.partition("\n")[0])
        if len(self.phases) > 1 or self.result == "running":
            lines.append(
                ", ".join(
                    one.name if one is self.phases[-1] and self.result == "running"
                    else f"{one.name} {duration(one.seconds)}"
                    for one in self.phases
                )
            )  # fmt: skip
        if self.waited >= WORTH:
            lines.append(f"waited {duration(self.waited)} for a worker, {self.waited_after}")
        if self.critical:
            lines.append("on the critical path")
        return "\n".join(lines)


class Lane(View, frozen=True, kw_only=True):
    """A slot of a worker; ``number`` counts from 1 on."""

    worker: str
    number: int
    slots: int  # that the worker used
    bars: tuple[Bar, ...]


class Line(View, frozen=True, kw_only=True):
    """A line from the end of an attempt to the beginning of one that waited for it."""

    began: float
    lane: int
    ended: float
    to_lane: int
    waited: bool


class TimelineView(View, frozen=True, kw_only=True):
    """A build's attempts in time; times are seconds since it was submitted."""

    build: RequestRow
    began: datetime  # when it was submitted
    now: float  # or when it ended
    begin: float  # what is drawn
    end: float
    lanes: tuple[Lane, ...]
    lanes_left_out: int
    brief: float  # attempts shorter than this are drawn as one with their neighbours; 0: none
    critical: tuple[Bar, ...]
    critical_seconds: float  # that they took
    critical_waited: float  # that they waited for workers
    lines: tuple[Line, ...]  # along the critical path
    unsuccessful: tuple[Bar, ...]  # the last attempts without success
    counts: tuple[Count, ...]  # attempts by result
    slots: int  # that were used at some time
    slots_mean: float  # that were used, on average
    waited: float  # seconds in which a step waited for a worker
    starved: float  # seconds in which slots were free, and no step was ready
    loads: tuple[Load, ...]
    forgotten: int  # steps that were built, and whose attempts are not known any more

    @property
    def over(self) -> bool:
        return self.build.state in OVER

    @property
    def layout(self) -> str:
        """Changes when bars move, or lanes are added."""
        lanes = [(lane.worker, lane.number) for lane in self.lanes]
        text = f"{self.begin} {self.end} {self.brief} {lanes}"
        return sha256(text.encode()).hexdigest()[:12]

    def x(self, at: float) -> float:
        """A moment as a part of what is drawn, in percent."""
        span = self.end - self.begin
        return round(min(100.0, max(0.0, 100.0 * (at - self.begin) / span)), 4)

    def width(self, began: float, seconds: float) -> float:
        """The percentage from a moment on."""
        return round(self.x(began + seconds) - self.x(began), 4)

    @property
    def recent(self) -> list[tuple[int, Bar]]:
        """The bars that may have changed since the page was loaded, with the numbers of lanes."""
        return [
            (number, bar)
            for number, lane in enumerate(self.lanes)
            for bar in lane.bars
            if bar.result == "running" or bar.began + bar.seconds > self.now - RECENT
        ]

    @property
    def ticks(self) -> list[float]:
        """Moments to mark."""
        step = scale((self.end - self.begin) / 8)
        first = -(-self.begin // step)
        count = int((self.end - first * step) / step) + 1
        return [(first + number) * step for number in range(min(count, 16))]

    def curve(self, which: str) -> str:
        """The load as an SVG path, 1000 wide and 100 high: "used" slots, or "ready" steps."""
        most = max(1, self.most(which))
        bins: dict[int, int] = {}
        level = 0
        last = 0
        for one in self.loads:
            place = int(self.x(one.at) / 100 * POINTS)
            for between in range(last + 1, place):
                bins[between] = level
            level = one.used if which == "used" else one.ready
            bins[place] = max(bins.get(place, 0), level)
            last = place
        bins[last + 1] = level
        path, shown = ["M0 100"], 0
        for place in sorted(bins):
            if bins[place] != shown:
                shown = bins[place]
                path.append(f"H{place * 1000 / POINTS:g}V{100 - 100 * shown / most:.1f}")
        return "".join([*path, "H1000V100Z"])

    def most(self, which: str) -> int:
        """The highest load."""
        return max((one.used if which == "used" else one.ready for one in self.loads), default=0)

    def ago(self, seconds: float) -> datetime:
        """A moment of the timeline on the clock."""
        return self.began + timedelta(seconds=round(seconds))
