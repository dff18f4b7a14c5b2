"""Requests: opened, resolved, polled, left, cancelled, kept for later queries.

An initiator polls its request; if it is silent for `Limits.patience`, it has left, and the request
ends.  A *detached* request goes on without.  A request that is over stays known for a while, for
initiators that ask for its outcome later.
"""

from __future__ import annotations

from fabric import bounds
from fabric.scheduling import plan
from fabric.scheduling.discards import discard
from fabric.scheduling.events import (
    Closed,
    NotJournaled,
    Opened,
    Remembered,
    Reopened,
    Resolve,
    Resolved,
    Unresolved,
)
from fabric.scheduling.lifecycle import check_over, finish, need
from fabric.scheduling.model import Request, Requester
from fabric.scheduling.shares import Share
from fabric.scheduling.state import FarmState
from fabric.wire.messages import BuildGraph, BuildOrder, Leave, Poll

#: Requests remembered as left, so that a late copy of their `BuildGraph` does not revive them.
_LEFT = 1000
#: Requests that are over and that nobody watches: so many are kept, with so many steps in all.
KEPT = 200
_KEPT_STEPS = 100_000
#: Characters of a request's id that may stand for the whole, if it is the only such request.
_PREFIX = 4
_DONE = True

# -- opened --------------------------------------------------------------------------------


def on_order(state: FarmState, order: BuildOrder) -> None:
    if not _known(state, order) and _has_room(state, order):
        open_request(state, order)
        state.outbox.effects.append(Resolve(order))


def on_graph(state: FarmState, graph: BuildGraph) -> None:
    if not _known(state, graph) and _has_room(state, graph):
        _validate(state, open_request(state, graph), graph)


def _known(state: FarmState, wanted: BuildOrder | BuildGraph) -> bool:
    """Whether a request is not new, so that nothing is left to do for it."""
    request = state.requests.get(wanted.request)
    if request is not None:
        _heard(state, request)
        return True
    if wanted.request in state.left and not wanted.detach:
        state.outbox.reject(wanted.request, "unknown-request", "this request was left")
        return True
    return False


def _has_room(state: FarmState, wanted: BuildOrder | BuildGraph) -> bool:
    """Whether one more request may be opened."""
    requester = state.requesters.get(wanted.requester)
    if requester is not None and len(requester.requests) >= bounds.OPEN_REQUESTS:
        reason = f"{wanted.requester or 'this user'} has {bounds.OPEN_REQUESTS} builds that are"
    elif sum(len(each.requests) for each in state.requesters.values()) >= bounds.ALL_REQUESTS:
        reason = f"the controller has {bounds.ALL_REQUESTS} builds that are"
    else:
        return True
    reason += " not over, as many as there may be; `fabric-initiator list` shows them"
    state.outbox.reject(wanted.request, "not-now", reason)
    return False


def open_request(state: FarmState, wanted: BuildOrder | BuildGraph) -> Request:
    state.count += 1
    requester = state.requesters.get(wanted.requester)
    if requester is None:
        requester = Requester(wanted.requester, Share(state.count))
        requester.share.join([each.share for each in state.requesters.values()], state.now)
        state.requesters[requester.name] = requester
    share = Share(state.count, weight=2.0**wanted.priority)
    share.join([each.share for each in requester.requests.values()], state.now)
    request = Request(
        id=wanted.request,
        title=wanted.title,
        requester=requester,
        share=share,
        heard=state.now,
        since=state.now,
        first_version=state.versions,
        keep_going=wanted.keep_going,
        fail_fast=wanted.fail_fast and not wanted.keep_going,
        priority=wanted.priority,
        detached=wanted.detach,
    )
    requester.add(request)
    state.queues.moved(request, state.now)  # the weight of its requester may have grown
    state.requests[request.id] = request
    state.request_changed(request)
    state.outbox.effects.append(Opened(request.id, request.title, wanted))
    state.timers.start(state.now + state.limits.patience, check_patience, request)
    return request


# -- resolved ------------------------------------------------------------------------------


def on_resolved(state: FarmState, event: Resolved) -> None:
    request = state.requests.get(event.request)
    if request is not None and request.state == "resolving":  # it is still wanted
        _validate(state, request, event.graph)


def on_unresolved(state: FarmState, event: Unresolved) -> None:
    request = state.requests.get(event.request)
    if request is not None and request.state == "resolving":
        _fail(state, request, event.message)


def _validate(state: FarmState, request: Request, graph: BuildGraph) -> None:
    """Validate a request's graph; the first portion at once, the rest with time."""
    before = sum(each.size for each in request.requester.requests.values())
    request.size = len(graph.steps)
    if before and before + request.size > bounds.OPEN_STEPS:
        reason = f"its {request.size:,} steps are too many beside the {before:,} of"
        reason += f" {request.requester.name or 'this user'}'s builds that are not over"
        _fail(state, request, f"{reason}; order it again when some are")
        return
    validation = _validation(state, request, graph)
    if next(validation, _DONE) is not _DONE:
        state.validations[request.id] = validation


def _validation(state: FarmState, request: Request, graph: BuildGraph) -> plan.Validation:
    try:
        specs, ranks, shown = yield from plan.validate(graph, state.expected)
        _check_depends(state, graph)
    except plan.InvalidGraph as problem:
        _fail(state, request, str(problem))
    else:
        request.specs, request.ranks, request.graph = specs, ranks, shown
        start_request(state, request, graph)


def _check_depends(state: FarmState, graph: BuildGraph) -> None:
    """A cache key names all that goes into an artifact, its dependencies too."""
    for spec in graph.steps:
        task = state.tasks.get(spec.key)
        if task is not None and task.spec.depends != spec.depends:
            raise plan.InvalidGraph(f"{spec.name}: another request says it depends on other things")


def start_request(state: FarmState, request: Request, graph: BuildGraph) -> None:
    """The graph of a request is valid: find out which of its artifacts are missing."""
    request.state = "checking"
    request.index = None
    request.goals = tuple(dict.fromkeys(graph.goals))
    request.wanted = dict.fromkeys((*graph.goals, *graph.along))
    state.request_changed(request)
    request.resolved_at = request.version
    state.checking[request.id] = request
    need(state, request, request.wanted)
    check_over(state, request)


def _fail(state: FarmState, request: Request, reason: str) -> None:
    """A request cannot be resolved."""
    request.state = "checking"
    finish(state, request, "failed", reason)


def validate_more(state: FarmState) -> None:
    """Go on with the validation of a large graph by one portion: nothing else waits long."""
    for id, validation in state.validations.items():
        request = state.requests.get(id)
        if request is None or request.over or next(validation, _DONE) is _DONE:
            del state.validations[id]
        break


# -- polled --------------------------------------------------------------------------------


def on_poll(state: FarmState, poll: Poll) -> None:
    request = state.requests.get(poll.request)
    if request is None:
        reason = "there is no such request (any more)"
        state.outbox.reject(poll.request, "unknown-request", reason)
    else:
        _heard(state, request)


def _heard(state: FarmState, request: Request) -> None:
    request.heard = state.now
    state.outbox.changed[request.id] = None


def check_patience(state: FarmState, request: Request) -> None:
    if state.requests.get(request.id) is not request or request.id in state.kept:
        return
    due = request.heard + state.limits.patience
    if request.over:  # its initiator knows; one that goes on polling must not fill the memory
        _keep(state, request)
    elif state.now < due:
        state.timers.start(due, check_patience, request)
    elif request.detached:
        state.timers.start(state.now + state.limits.patience, check_patience, request)
    else:
        # Not kept: an initiator that was only cut off submits it again.
        finish(state, request, "cancelled", "its initiator was not heard of any more")
        del state.requests[request.id]


# -- over ----------------------------------------------------------------------------------


def on_leave(state: FarmState, leave: Leave) -> None:
    request = state.requests.get(leave.request)
    if request is None or not request.detached:
        state.left[leave.request] = None
        if len(state.left) > _LEFT:
            del state.left[next(iter(state.left))]
    if request is None or (request.detached and not request.over):
        return
    if not request.over:
        finish(state, request, "cancelled", "left by its initiator")
    _keep(state, request)


def on_not_journaled(state: FarmState, event: NotJournaled) -> None:
    """Forget a request that could not be journaled, so that it may be submitted again."""
    request = state.requests.get(event.request)
    if request is None:
        return
    if request.over:
        if state.kept.pop(request.id, None) is not None:
            state.kept_steps -= len(request.results)
            _drop_graph(state, request)
        state.outbox.effects.append(Closed(request.id, request.state))
    else:
        finish(state, request, "cancelled", "it cannot be written down")
    del state.requests[request.id]


def on_remembered(state: FarmState, event: Remembered) -> None:
    """A former run of the broker saw the end of a request."""
    outcome = event.outcome
    if outcome.request in state.requests:
        return
    state.count += 1
    request = Request(
        id=outcome.request,
        title=outcome.title,
        requester=Requester(event.requester, Share(state.count)),
        share=Share(state.count),
        heard=state.now,
        since=state.now - event.ago,
        ended=state.now - event.ended,
        first_version=outcome.version - len(outcome.steps),
        state=outcome.state,
        message=outcome.message,
        goals=outcome.goals,
        resolved_at=outcome.version,
    )
    for step in outcome.steps:
        request.record(step.key, step)
        request.news.append(step.key)
    state.requests[request.id] = request
    _keep(state, request)


def on_reopened(state: FarmState, event: Reopened) -> None:
    """A former run of the broker saw the beginning of a request, but not its end."""
    intent = event.intent
    if isinstance(intent, BuildOrder):
        on_order(state, intent)
    else:
        on_graph(state, intent)
    request = state.requests.get(intent.request)
    if request is not None:
        request.since = state.now - event.ago


def find_requests(state: FarmState, about: str) -> list[Request]:
    """The requests that a user may mean, by the whole id or by its beginning."""
    request = state.requests.get(about)
    if request is not None:
        return [request]
    if len(about) < _PREFIX:
        return []
    return [request for id, request in state.requests.items() if id.startswith(about)]


def _keep(state: FarmState, request: Request) -> None:
    """Keep a request that is over as long as there is room."""
    if request.id in state.kept:
        return
    state.kept[request.id] = request
    state.kept_steps += len(request.results)
    if request.graph:
        state.graphs[request.id] = request
        state.graph_steps += len(request.graph)
    while state.graph_steps > bounds.GRAPHS_KEPT and len(state.graphs) > 1:
        _drop_graph(state, next(iter(state.graphs.values())))
    while len(state.kept) > KEPT or (state.kept_steps > _KEPT_STEPS and len(state.kept) > 1):
        oldest = state.kept.pop(next(iter(state.kept)))
        state.kept_steps -= len(oldest.results)
        _drop_graph(state, oldest)
        del state.requests[oldest.id]


def _drop_graph(state: FarmState, request: Request) -> None:
    if state.graphs.pop(request.id, None) is not None:
        state.graph_steps -= len(request.graph)
        discard(state, request.graph)
        request.graph = []
