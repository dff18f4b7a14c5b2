"""Makes the updates that initiators get of their requests."""

from __future__ import annotations

from fabric.scheduling import snapshots
from fabric.scheduling.explain import first, warning, why_request
from fabric.scheduling.model import Request
from fabric.scheduling.state import FarmState
from fabric.wire.messages import Update


def update(state: FarmState, request: Request, seen: int, now: float) -> Update:
    """The news of a request since version ``seen``."""
    steps = []
    # Before the steps were known there was no news of them.
    fresh = 0 if seen < request.resolved_at else max(0, seen - request.first_version)
    # Each step once, in the order of the last changes.
    for key in reversed(dict.fromkeys(reversed(request.news[fresh:]))):
        if (result := request.results.get(key)) is not None:
            steps.append(result)
        elif (task := request.needed.get(key)) is not None:
            steps.append(snapshots.step(task, now))
    return Update(
        request=request.id,
        version=request.version,
        state=request.state,
        steps=tuple(steps),
        left=seconds_left(state, request, now),
        message=request.message or why_request(state, request, now),
        title=request.title if seen <= request.resolved_at else "",
        goals=request.goals if seen <= request.resolved_at else (),
        warning=warning(state, request, now),
    )


def seconds_left(state: FarmState, request: Request, now: float) -> float:
    """Seconds until the end, by the longest path or by all the work; 0: unknown."""
    if request.over or request.guesses or request.state == "resolving":
        return 0.0
    longest = 0.0
    task = first(state, request)
    if task is not None:
        longest = request.ranks.get(task.key, 0.0)
        if task.attempt is not None:
            longest -= min(task.expected, now - task.attempt.since)
    return max(longest, request.work_left / max(1, state.capacity))
