"""Estimates how long a request goes on, by playing the rest of it.

Each step takes as long as it took before, times the pace of the request so far: its machines may
be slower now.  The longest path comes first, as in `queues`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from fabric.scheduling.explain import first
from fabric.scheduling.model import Request, Task
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import PRESENT

#: Steps and missing dependencies that are played, at most.
MOST = 200_000
#: With more steps and missing dependencies than this, an estimate is kept for a while: a second
#: for each `A_SECOND`, which is about a hundred times as long as it takes.
FEW = 200
A_SECOND = 5_000
#: Steps that are played for one list of requests, at most: of requests that were never estimated,
#: and of others.
FIRST, AGAIN = 20_000, 5_000
#: Steps that begin next, as far as users are shown.
NEXT = 8
#: Bounds of the pace: one step that has become another thing says little of the rest.
FASTEST, SLOWEST = 0.5, 3.0


class Future(NamedTuple):
    """The expected end of a request, and its next steps."""

    left: float = 0.0  # seconds until the end; 0: unknown
    next: tuple[str, ...] = ()  # names of the steps that begin next


def future(state: FarmState, request: Request, now: float) -> Future:
    """When a request should end, and the steps that begin next."""
    if request.state != "building":
        return Future()
    if now >= request.estimate_due:
        size = len(request.needed) + sum(task.missing for task in request.needed.values())
        keys: list[str] = []
        if size <= MOST:
            slots = _slots(state, request)
            left, keys = play(request.needed, request.ranks, slots, now, pace(request))
        else:
            left = _at_least(state, request, now)
        request.ends, request.estimate_due = now + left, now + max(0, size - FEW) / A_SECOND
        request.next = tuple(request.specs[key].name for key in keys)
    return Future(0.0 if request.guesses else max(0.0, request.ends - now), request.next)


def known(request: Request, now: float) -> float:
    """The seconds left as estimated last; 0: unknown."""
    if request.state != "building" or request.guesses:
        return 0.0
    return max(0.0, request.ends - now)


def overdue(requests: Iterable[Request], now: float) -> set[str]:
    """Of many requests, those to estimate anew for a list of all, the longest overdue first.

    There may be very many; the others keep an older estimate, or have none until the next list.
    """
    due = (each for each in requests if each.state == "building" and now >= each.estimate_due)
    found: set[str] = set()
    steps = 0
    for request in sorted(due, key=lambda each: each.estimate_due):
        steps += len(request.needed)
        if found and steps > (FIRST if not request.estimate_due else AGAIN):
            break
        found.add(request.id)
    return found


def pace(request: Request) -> float:
    """How much longer its steps take than they took before, the first few of which count less."""
    prior = request.work_left / 10
    planned = request.planned + prior
    found = (request.took + prior) / planned if planned > 0 else 1.0
    return min(max(found, FASTEST), SLOWEST)


def play(
    tasks: Mapping[str, Task],
    ranks: Mapping[str, float],
    slots: int,
    now: float,
    pace: float = 1.0,
) -> tuple[float, list[str]]:
    """Seconds until all tasks are present, if each takes ``pace`` times as long as expected.

    Also the keys of the first `NEXT` that begin.
    """
    missing: dict[str, int] = {}
    ends: list[tuple[float, str]] = []  # heap of (when it ends, running task)
    ready: list[tuple[float, int, str]] = []  # heap of (-rank, its number, ready task)
    for key, task in tasks.items():
        if task.attempt is not None:
            ends.append((max(0.0, pace * task.expected - (now - task.attempt.since)), key))
        elif task.missing:
            missing[key] = task.missing
        elif task.state not in PRESENT:
            ready.append((-ranks.get(key, 0.0), task.number, key))
    heapify(ends)
    heapify(ready)
    free, at = slots - len(ends), 0.0
    begun: list[str] = []
    while ends or ready:
        while ready and free > 0:
            key = heappop(ready)[2]
            heappush(ends, (at + pace * tasks[key].expected, key))
            free -= 1
            if len(begun) < NEXT and tasks[key].spec.kind != "stratum":  # lists take no time
                begun.append(key)
        at, key = heappop(ends)
        free += 1
        for above, waiter in tasks[key].waiters.items():
            if above in missing:  # not of another request alone
                missing[above] -= 1
                if not missing[above]:
                    heappush(ready, (-ranks.get(above, 0.0), waiter.number, above))
    return at, begun


def _slots(state: FarmState, request: Request) -> int:
    """The slots that a request may have: its share, or more if it has them now."""
    requester = request.requester
    part = requester.share.weight / sum(each.share.weight for each in state.requesters.values())
    part *= request.share.weight / sum(each.share.weight for each in requester.requests.values())
    return max(1, request.running, round(state.capacity * part))


def _at_least(state: FarmState, request: Request, now: float) -> float:
    """The seconds of the longest path, or of all the work."""
    past = {
        task.key: min(task.expected, now - task.attempt.since)
        for task in request.needed.values()
        if task.attempt is not None
    }
    task = first(state, request)
    longest = request.ranks.get(task.key, 0.0) - past.get(task.key, 0.0) if task else 0.0
    return max(longest, (request.work_left - sum(past.values())) / _slots(state, request))
