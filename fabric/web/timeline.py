"""Makes the timeline of a build: its attempts on the slots of the workers, and what it waited for.

`fabric.web.timeline_view` is what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated

from msgspec import Meta, Struct

from fabric import bounds
from fabric.client.request import OVER
from fabric.web.attempts import Known, Try
from fabric.web.graph import GraphRow, critical, rows
from fabric.web.graphs import Graph
from fabric.web.lanes import (
    Group,
    Load,
    Span,
    Wait,
    grouped,
    load,
    needs_of,
    scale,
    shares,
    slots,
    thinned,
    waits,
)
from fabric.web.lanes import critical as critical_attempts
from fabric.web.page import Page, Web
from fabric.web.pages.build import find
from fabric.web.pages.facts import RESULTS, counts, natural, request_row
from fabric.web.timeline_view import POINTS, WORTH, Bar, Lane, Line, PhaseRow, TimelineView
from fabric.wire.messages import RequestInfo

#: Attempts without success that are listed.
LISTED = 50

Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class TimelineQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The part of the build's time that is drawn, in seconds since it was submitted."""

    begin: Seconds = 0.0
    end: Seconds = 0.0  # 0: until its end


class _Drawn(Struct):
    """What several parts of a view are made from."""

    tries: list[Try]
    spans: list[Span]
    waiting: list[Wait]
    base: float
    path: frozenset[int]

    def bar(self, place: int) -> Bar:
        """The bar of one attempt."""
        one, wait = self.tries[place].info, self.waiting[place]
        began = round(self.tries[place].began - self.base, 2)
        seconds = round(max(0.0, self.tries[place].ended - self.tries[place].began), 2)
        ends = [*(at for _, at in one.phases[1:]), seconds]
        return Bar(
            key=one.key,
            fence=str(one.fence),
            name=one.name,
            kind=one.kind,
            worker=one.worker,
            result=one.result or "running",
            began=began,
            seconds=seconds,
            phases=tuple(
                PhaseRow(
                    name=name,
                    began=round(began + at, 2),
                    seconds=round(max(0.0, min(end, seconds) - at), 2),
                )
                for (name, at), end in zip(one.phases, ends, strict=False)
            ),
            waited=round(wait.seconds, 2),
            waited_after=self._after(wait, place),
            critical=place in self.path,
            message=one.message,
        )

    def _after(self, wait: Wait, place: int) -> str:
        if wait.after < 0:
            return "since the build began" if wait.seconds else ""
        before = self.tries[wait.after].info
        if before.key == self.tries[place].info.key:
            return f"since its attempt on {before.worker} was {_ENDED.get(before.result, 'over')}"
        return f"since {before.name} was done"

    def group(self, group: Group) -> Bar:
        """The bar of one or several attempts."""
        first = self.bar(group.members[0])
        if len(group.members) == 1:
            return first
        return Bar(
            key=first.key,
            fence=first.fence,
            name=first.name,
            kind=first.kind,
            worker=first.worker,
            result="done",
            began=round(group.began - self.base, 2),
            seconds=round(group.ended - group.began, 2),
            count=len(group.members),
        )


#: How an attempt was that ended so.
_ENDED = {
    "failed": "failed", "fault": "stopped by a fault", "refused": "refused",
    "cancelled": "cancelled", "lost": "lost",
}  # fmt: skip


def _spans(
    tries: Sequence[Try], graph: Graph, steps: Sequence[GraphRow]
) -> tuple[list[Try], list[Span], Sequence[Sequence[int]]]:
    """The attempts at steps of the graph, as spans, and what each step needs of those built."""
    place = {step.key: number for number, step in enumerate(graph.steps)}
    known = [one for one in tries if one.info.key in place] if graph.steps else list(tries)
    if not graph.steps:  # the broker has forgotten the graph: nothing waits for anything
        names = {one.info.key: None for one in known}
        place = {key: number for number, key in enumerate(names)}
    spans = [
        Span(
            step=place[one.info.key],
            began=one.began,
            ended=one.ended,
            result=one.info.result,
            worker=one.info.worker,
            phases=one.info.phases,
        )
        for one in known
    ]
    if not graph.steps:
        return known, spans, [()] * len(place)
    built = [step.state == "ready" for step in steps]
    for span in spans:
        built[span.step] = True
    return known, spans, needs_of(graph.dag, built)


def view(
    info: RequestInfo,
    graph: Graph,
    steps: Sequence[GraphRow],
    known: Known,
    now: float,
    epoch: datetime,
    query: TimelineQuery,
) -> TimelineView:
    """The page of a build whose steps are in these states; ``now`` counts from ``epoch`` on."""
    base = known.base if known.base is not None else now - info.since
    over = info.state in OVER
    running = [] if over else [Try(one.began, now, one.info) for one in known.running]
    tries, spans, needs = _spans([*known.ended, *running], graph, steps)
    tried = {span.step for span in spans}
    forgotten = sum(
        step.state in ("done", "failed") and place not in tried for place, step in enumerate(steps)
    )
    first = min((span.began for span in spans), default=base)
    whole = bool(graph.steps) and not forgotten  # all attempts are known, and what they need
    waiting = waits(spans, needs, first if whole else None)
    path = critical_attempts(spans, waiting, frozenset(critical(steps, graph.dag)))
    drawn = _Drawn(tries, spans, waiting, base, frozenset(path))

    end = max([one.ended for one in spans], default=now) if over else now
    rest = 0.0 if over else max(info.left, (end - base) * 0.02, 10.0)
    last = query.end or (max(end - base, 1.0) if over else scale(end - base + rest))
    begin = query.begin or (0.0 if whole else max(0.0, first - base))
    begin = min(begin, last - 0.1)

    places = slots(spans)
    lanes, left_out = _lanes(places, spans)
    shown = [
        [
            one
            for one in lane
            if spans[one].ended - base >= begin and spans[one].began - base <= last
        ]
        for _, lane in lanes
    ]
    brief, groups = _grouped(shown, spans, drawn.path, last - begin)
    number_of = {one: number for number, (_, lane) in enumerate(lanes) for one in lane}
    slot_count: dict[str, int] = {}
    for worker, slot in places:
        slot_count[worker] = max(slot_count.get(worker, 0), slot + 1)

    ready = _ready(steps, spans, needs, base)
    loads = load(spans, waiting, ready)
    # While it goes on, up to the last change: so the page changes only with the facts.
    until = end if over or not loads else loads[-1].at
    used, waited, starved = shares(loads, len(lanes) + left_out, until)
    bars = [drawn.bar(one) for one in path]
    return TimelineView(
        build=request_row(info, datetime.now(UTC)),
        began=(epoch + timedelta(seconds=base)).replace(microsecond=0),
        now=round(end - base, 2),
        begin=round(begin, 2),
        end=round(last, 2),
        lanes=tuple(
            Lane(
                worker=worker,
                number=slot + 1,
                slots=slot_count[worker],
                bars=tuple(drawn.group(group) for group in its),
            )
            for ((worker, slot), _), its in zip(lanes, groups, strict=True)
        ),
        lanes_left_out=left_out,
        brief=round(brief, 3),
        critical=tuple(bars),
        critical_seconds=round(sum(bar.seconds for bar in bars), 1),
        critical_waited=round(sum(bar.waited for bar in bars), 1),
        lines=tuple(
            Line(
                began=round(spans[a].ended - base, 2),
                lane=number_of[a],
                ended=round(spans[b].began - base, 2),
                to_lane=number_of[b],
                waited=waiting[b].seconds >= WORTH,
            )
            for a, b in pairwise(path)
            if a in number_of and b in number_of
        ),
        unsuccessful=tuple(
            drawn.bar(place) for place, span in enumerate(spans) if span.result not in ("", "done")
        )[-LISTED:],
        counts=counts((one.info.result or "running" for one in tries), RESULTS),
        slots=len(lanes) + left_out,
        slots_mean=round(used / max(1.0, until - base), 1),
        waited=round(waited, 1),
        starved=round(starved, 1),
        loads=tuple(
            Load(round(one.at - base, 2), one.used, one.ready) for one in thinned(loads, POINTS)
        ),
        forgotten=forgotten,
    )


def _lanes(
    places: Sequence[tuple[str, int]], spans: Sequence[Span]
) -> tuple[list[tuple[tuple[str, int], list[int]]], int]:
    """The attempts of each slot, and how many slots are left out, as they were used least."""
    lanes: dict[tuple[str, int], list[int]] = {}
    for one in sorted(range(len(places)), key=lambda one: (spans[one].began, one)):
        lanes.setdefault(places[one], []).append(one)
    most = sorted(
        lanes.items(), key=lambda lane: -sum(spans[one].ended - spans[one].began for one in lane[1])
    )
    kept = most[: bounds.WEB_LANES]
    kept.sort(key=lambda lane: (natural(lane[0][0]), lane[0][1]))
    return kept, len(most) - len(kept)


def _grouped(
    lanes: Sequence[Sequence[int]], spans: Sequence[Span], path: frozenset[int], seconds: float
) -> tuple[float, list[list[Group]]]:
    """The bars of each lane; attempts shorter than the number are grouped until they are few."""

    few = sum(spans[one].result != "done" for lane in lanes for one in lane) < bounds.WEB_BARS / 4

    def keep(place: int) -> bool:
        return place in path or not spans[place].result or (few and spans[place].result != "done")

    brief = 0.0
    found = [grouped(lane, spans, brief, keep) for lane in lanes]
    while sum(map(len, found)) > bounds.WEB_BARS and brief < seconds:
        brief = max(brief * 1.6, seconds / 50_000)
        found = [grouped(lane, spans, brief, keep) for lane in lanes]
    return brief, found


def _ready(
    steps: Sequence[GraphRow],
    spans: Sequence[Span],
    needs: Sequence[Sequence[int]],
    base: float,
) -> list[float]:
    """The moments since which steps wait for a worker."""
    done: dict[int, float] = {}
    for span in spans:
        if span.result:
            done[span.step] = max(done.get(span.step, base), span.ended)
    return [
        max([done.get(dep, base) for dep in (*needs[place], place)], default=base)
        for place, step in enumerate(steps)
        if step.state == "ready"
    ]


async def make(web: Web, path: Mapping[str, str], query: TimelineQuery) -> TimelineView:
    answer = await web.farm.query("requests")
    info = find(answer, path["id"])
    # As when it was asked for: so no attempt seems to begin before the build.
    submitted = web.attempts.now - info.since - (answer.heard - answer.asked)
    mirror = await web.mirrors.get(info.request)
    graph = await web.graphs.get(info.request)
    known = await web.attempts.get(info.request, submitted)
    steps = rows(graph.steps, mirror.steps)
    now, epoch = web.attempts.now, web.attempts.epoch
    return await web.paced.get(
        (info.request, query), lambda: view(info, graph, steps, known, now, epoch, query)
    )


routes = [
    Page(
        path="/builds/{id}/timeline",
        template="timeline.html",
        summary="The attempts of a build in time",
        view=TimelineView,
        make=make,
        query=TimelineQuery,
    )
]
