"""Makes the updates that initiators get of their requests."""

from __future__ import annotations

from fabric.scheduling import snapshots
from fabric.scheduling.estimate import future
from fabric.scheduling.explain import warning, why_request
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
    expected = future(state, request, now)
    return Update(
        request=request.id,
        version=request.version,
        state=request.state,
        steps=tuple(steps),
        left=expected.left,
        message=request.message or why_request(state, request, now),
        title=request.title if seen <= request.resolved_at else "",
        goals=request.goals if seen <= request.resolved_at else (),
        warning=warning(state, request, now),
        next=expected.next,
    )
