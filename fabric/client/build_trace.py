"""Makes a trace of a build: a lane for each slot of a worker, with its attempts and their phases.

The format is the Trace Event Format, which Perfetto and chrome://tracing open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fabric.wire.messages import AttemptInfo, GraphStep

#: Seconds by which an attempt may overlap the next one in its slot: pages of the history come at
#: different moments.
_JITTER = 0.05
#: The process that stands for the build itself; workers follow.
_BUILD = 1
#: Of the results of attempts, those that Chrome's viewer shows in another color.
_COLORS = {"failed": "terrible", "fault": "bad", "lost": "bad", "cancelled": "grey"}

#: One event of the format.
Event = dict[str, Any]


class Attempt(NamedTuple):
    """An attempt, with the seconds since 1970 at which it began and ended."""

    info: AttemptInfo
    began: float
    ended: float

    @property
    def result(self) -> str:
        """As in `AttemptInfo`; "running" while it runs."""
        return self.info.result or "running"

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """(phase, when it began, when it ended), in order, within the attempt."""
        phases = self.info.phases
        ends = [seconds for _, seconds in phases[1:]]
        at = self.began
        for (phase, first), last in zip(phases, [*ends, self.ended - self.began], strict=False):
            began = min(max(self.began + first, at), self.ended)
            at = min(max(self.began + last, began), self.ended)
            yield phase, began, at


class TracedBuild(NamedTuple):
    """A build and its attempts.  Times are seconds since 1970."""

    request: str
    title: str
    requester: str
    state: str
    began: float
    ended: float  # or now, if it goes on
    attempts: Sequence[Attempt]
    graph: Sequence[GraphStep] = ()  # empty if what steps need is not known any more

    def lanes(self) -> dict[str, list[list[Attempt]]]:
        """Worker -> lanes, each with attempts that do not overlap, in their order."""
        found: dict[str, list[list[Attempt]]] = {}
        for attempt in sorted(self.attempts, key=lambda one: (one.began, one.info.fence)):
            lanes = found.setdefault(attempt.info.worker, [])
            for lane in lanes:
                if lane[-1].ended <= attempt.began + _JITTER:
                    lane.append(attempt)
                    break
            else:
                lanes.append([attempt])
        return dict(sorted(found.items()))

    def needs(self) -> Iterator[tuple[Attempt, Attempt]]:
        """(attempt, attempt that waited for it): the last ones at steps of which one needs the
        other.
        """
        last = {one.info.key: one for one in sorted(self.attempts, key=lambda one: one.ended)}
        for step in self.graph:
            above = last.get(step.key)
            for place in step.depends if above is not None else ():
                below = last.get(self.graph[place].key)
                if above is not None and below is not None and below.ended <= above.ended:
                    yield below, above


def trace(build: TracedBuild) -> dict[str, Any]:
    """The trace of a build: a JSON document.  Times in it are microseconds since the build began,
    or since the first attempt that it shares with an earlier one.
    """
    start = min([build.began, *(one.began for one in build.attempts)])
    events = [*_process(_BUILD, "build", 0), _thread(_BUILD, 1, build.title)]
    facts = {"request": build.request, "requester": build.requester, "state": build.state}
    events.append(
        _slice(build.title, "build", (_BUILD, 1), build.began - start, build.ended - start, facts)
    )
    drawn: dict[tuple[str, int], _Drawn] = {}
    for process, (worker, lanes) in enumerate(build.lanes().items(), _BUILD + 1):
        events += _process(process, worker, process)
        for thread, lane in enumerate(lanes, 1):
            events.append(_thread(process, thread, f"slot {thread}"))
            free = 0.0
            for one in lane:
                began = max(one.began - start, free)
                free = max(one.ended - start, began)
                bar = drawn[one.info.key, one.info.fence] = _Drawn((process, thread), began, free)
                events += _attempt(one, bar, start)
    events += _flows(build, drawn)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {**facts, "title": build.title, "began": build.began},
    }


class _Drawn(NamedTuple):
    """Where an attempt is drawn; times are seconds since the trace begins."""

    where: tuple[int, int]  # process and thread
    began: float  # once the slot was free
    ended: float


def _attempt(one: Attempt, bar: _Drawn, start: float) -> Iterator[Event]:
    """An attempt, and its phases below it."""
    info = one.info
    facts: dict[str, Any] = {
        "key": info.key,
        "fence": str(info.fence),  # viewers take numbers for doubles
        "kind": info.kind,
        "result": one.result,
    }
    if info.message:
        facts["message"] = info.message
    event = _slice(info.name, info.kind or "step", bar.where, bar.began, bar.ended, facts)
    if color := _COLORS.get(one.result):
        event["cname"] = color
    yield event
    for phase, first, last in one.phases():
        yield _slice(phase, "phase", bar.where, max(first - start, bar.began), last - start, {})


def _flows(build: TracedBuild, drawn: Mapping[tuple[str, int], _Drawn]) -> Iterator[Event]:
    """Arrows from attempts to those that needed what they built."""
    for number, (below, above) in enumerate(build.needs(), 1):
        common: Event = {"name": "needs", "cat": "needs", "id": number}
        first, last = (drawn[one.info.key, one.info.fence] for one in (below, above))
        for kind, one, at in (("s", first, first.ended), ("f", last, last.began)):
            process, thread = one.where
            event = {"ph": kind, **common, "pid": process, "tid": thread}
            yield {**event, "ts": _micros(at)} | ({"bp": "e"} if kind == "f" else {})


def _slice(
    name: str,
    category: str,
    where: tuple[int, int],
    began: float,
    ended: float,
    facts: Mapping[str, Any],
) -> Event:
    """A complete event; times are seconds since the trace begins."""
    first = _micros(began)
    event: Event = {"ph": "X", "name": name, "cat": category, "pid": where[0], "tid": where[1]}
    event |= {"ts": first, "dur": max(0, _micros(ended) - first)}
    return {**event, "args": dict(facts)} if facts else event


def _process(process: int, name: str, place: int) -> Iterator[Event]:
    yield _meta("process_name", process, {"name": name})
    yield _meta("process_sort_index", process, {"sort_index": place})


def _thread(process: int, thread: int, name: str) -> Event:
    return {**_meta("thread_name", process, {"name": name}), "tid": thread}


def _meta(what: str, process: int, facts: Mapping[str, Any]) -> Event:
    return {"ph": "M", "name": what, "pid": process, "args": dict(facts)}


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
