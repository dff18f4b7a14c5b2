"""Lays out the attempts of a build in time: a lane for each slot, waiting, and a critical path.

All times are seconds on one clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from typing import NamedTuple

from fabric.web import dag
from fabric.wire.messages import STORING

#: Seconds by which an attempt may seem to begin before what it waited for had ended.
JITTER = 0.5
#: Length of a group of attempts, in lengths of the longest that may be in it.
GROUP = 10


class Span(NamedTuple):
    """An attempt at the step with this place in the graph."""

    step: int
    began: float
    ended: float  # or now
    result: str  # as in `AttemptInfo`; "": it runs
    worker: str = ""
    phases: tuple[tuple[str, float], ...] = ()  # (phase, seconds since it began)

    @property
    def free(self) -> float:
        """When its slot was free for another attempt: storing needs none."""
        if self.phases and self.phases[-1][0] == STORING:
            return min(self.ended, self.began + self.phases[-1][1])
        return self.ended


class Wait(NamedTuple):
    """How long an attempt had to wait for a worker, after the last thing that it needed."""

    seconds: float
    after: int  # the attempt that ended last of those that it waited for; -1: none


def slots(spans: Sequence[Span]) -> list[tuple[str, int]]:
    """The worker and slot of each attempt, from 0 on: the lowest that is free when it begins."""
    found = [("", 0)] * len(spans)
    free: dict[str, list[int]] = {}
    busy: dict[str, list[tuple[float, int]]] = {}
    count: dict[str, int] = {}
    for place in sorted(range(len(spans)), key=lambda one: (spans[one].began, one)):
        span = spans[place]
        its_free = free.setdefault(span.worker, [])
        its_busy = busy.setdefault(span.worker, [])
        while its_busy and its_busy[0][0] <= span.began + JITTER:
            heapq.heappush(its_free, heapq.heappop(its_busy)[1])
        if its_free:
            slot = heapq.heappop(its_free)
        else:
            slot = count.get(span.worker, 0)
            count[span.worker] = slot + 1
        heapq.heappush(its_busy, (span.free, slot))
        found[place] = span.worker, slot
    return found


def waits(spans: Sequence[Span], needs: Sequence[Sequence[int]], start: float | None) -> list[Wait]:
    """For each attempt, the last one that it waited for, and how long it waited after that.

    An attempt waits for the attempts that built what its step needs, and for the one before at
    the same step.  One that waited for none has waited since ``start``, if that is known.
    """
    by_step: dict[int, list[int]] = {}
    for place in sorted(range(len(spans)), key=lambda one: (spans[one].ended, one)):
        by_step.setdefault(spans[place].step, []).append(place)
    found = []
    for place, span in enumerate(spans):
        last = -1
        for step in (*needs[span.step], span.step):
            for one in by_step.get(step, ()):
                before = spans[one]
                if not before.result or before.ended > span.began + JITTER:
                    continue
                if step != span.step and before.result != "done":
                    continue
                if step == span.step and (before.began, one) >= (span.began, place):
                    continue
                if last < 0 or (before.ended, one) > (spans[last].ended, last):
                    last = one
        since = spans[last].ended if last >= 0 else start
        found.append(Wait(max(0.0, span.began - since) if since is not None else 0.0, last))
    return found


def critical(
    spans: Sequence[Span], waiting: Sequence[Wait], likely: Container[int] = ()
) -> list[int]:
    """The attempts that decided when the build ended, in order.

    The last is that which ended last; of several, as of those that run, one at a ``likely`` step.
    Before each stands the one that it waited for.  So each moment of the build belongs to one of
    them, or to the time that one waited for a worker.
    """
    if not spans:
        return []
    at = max(range(len(spans)), key=lambda one: (spans[one].ended, spans[one].step in likely, one))
    path = []
    while at >= 0:
        path.append(at)
        at = waiting[at].after
    return path[::-1]


class Load(NamedTuple):
    """From a moment on: how many slots are used, and how many steps wait for a worker."""

    at: float
    used: int
    ready: int


def load(spans: Sequence[Span], waiting: Sequence[Wait], ready: Sequence[float] = ()) -> list[Load]:
    """How the use of slots changes; ``ready`` are the moments since which other steps wait."""
    changes: list[tuple[float, int, int]] = []
    for span, wait in zip(spans, waiting, strict=True):
        changes.append((span.began, 1, 0))
        if span.result or span.free < span.ended:
            changes.append((span.free, -1, 0))
        if wait.seconds > 0:
            changes.append((span.began - wait.seconds, 0, 1))
            changes.append((span.began, 0, -1))
    changes += [(moment, 0, 1) for moment in ready]
    changes.sort()
    found: list[Load] = []
    used = waiters = 0
    for at, more_used, more_ready in changes:
        used, waiters = used + more_used, waiters + more_ready
        if found and found[-1].at == at:
            found.pop()
        found.append(Load(at, used, waiters))
    return found


def shares(loads: Sequence[Load], slots: int, end: float) -> tuple[float, float, float]:
    """Slot seconds used; seconds in which steps waited; in which slots were free, and none did."""
    used = waited = starved = 0.0
    for one, following in pairwise([*loads, Load(end, 0, 0)]):
        seconds = max(0.0, following.at - one.at)
        used += one.used * seconds
        if one.ready:
            waited += seconds
        elif one.used < slots:
            starved += seconds
    return used, waited, starved


class Group(NamedTuple):
    """Attempts of a lane that are drawn as one: the first and the last, and all between."""

    members: list[int]
    began: float
    ended: float


def thinned(loads: Sequence[Load], most: int) -> list[Load]:
    """At most so many changes: of those near each other, the first with the highest numbers."""
    if len(loads) <= most:
        return list(loads)
    first, last = loads[0].at, loads[-1].at
    found: list[Load] = []
    bucket = -1
    for one in loads:
        number = min(most - 1, int((one.at - first) / (last - first) * most))
        if number == bucket:
            at, used, ready = found[-1]
            found[-1] = Load(at, max(used, one.used), max(ready, one.ready))
        else:
            found.append(one)
            bucket = number
    found[-1] = Load(found[-1].at, loads[-1].used, loads[-1].ready)
    return found


def grouped(
    lane: Sequence[int], spans: Sequence[Span], least: float, keep: Callable[[int], bool]
) -> list[Group]:
    """The attempts of a lane, in order; neighbours shorter than ``least`` seconds are one group.

    A group is not much longer than `GROUP` times that.  Those to ``keep`` are never in one.
    """
    found: list[Group] = []
    small = False  # whether the last group may grow
    for place in lane:
        span = spans[place]
        brief = span.ended - span.began < least and not keep(place)
        if (
            small
            and brief
            and span.began - found[-1].ended < least
            and span.ended - found[-1].began < GROUP * least
        ):
            last = found[-1]
            last.members.append(place)
            found[-1] = Group(last.members, last.began, max(last.ended, span.ended))
        else:
            found.append(Group([place], span.began, span.ended))
        small = brief
    return found


def scale(seconds: float) -> float:
    """The next round length, which changes seldom while a build goes on."""
    step = 1.0
    while step * 10 < seconds:
        step *= 10
    for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10):
        if step * factor >= seconds:
            return step * factor
    return seconds


def needs_of(graph: dag.Dag, built: Sequence[bool]) -> list[list[int]]:
    """For each step that was built, the nearest built steps that it needs."""
    return dag.reduced(graph, built).depends
