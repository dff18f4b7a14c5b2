"""Answers queries from the state, which they do not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

from fabric import bounds
from fabric.scheduling import snapshots
from fabric.scheduling.attempt_list import Scope, running
from fabric.scheduling.estimate import future, known, overdue
from fabric.scheduling.explain import backing_off, why, why_request
from fabric.scheduling.model import Attempt, Request, Worker
from fabric.scheduling.requests import find_requests
from fabric.scheduling.state import FarmState
from fabric.scheduling.step_names import NameQuery, StepIndex
from fabric.scheduling.updates import update
from fabric.wire.messages import (
    Answer,
    GraphStep,
    LogInfo,
    Query,
    RequestInfo,
    StepState,
    WorkerInfo,
    cut,
)

#: Lines in the answer to `why`, at most.
MANY_LINES = 1000
#: Characters of a title in a list of all requests.
_TITLE = 200
#: Logs in an answer, at most: the newest.
MANY_LOGS = 1000


def answer(state: FarmState, query: Query, now: float) -> Answer:
    """The answer to a query."""
    match query.what:
        case "requests":
            requests = state.requests.values()
            anew = overdue(requests, now)
            infos = tuple([_request(state, each, now, anew=each.id in anew) for each in requests])
            return Answer(query.id, requests=infos)
        case "workers":
            workers = state.workers.values()
            return Answer(query.id, workers=tuple(_worker(state, each, now) for each in workers))
        case "why":
            lines = tuple(islice(_why(state, query.about, now), MANY_LINES))
            unknown = (
                f"{query.about!r}: no such build or step; `fabric-initiator list` lists builds,"
            )
            error = "" if lines else f"{unknown} and `fabric-initiator status ID` the steps of one"
            return Answer(query.id, error, lines=lines)
        case "pinned":
            live = (request for request in state.requests.values() if not request.over)
            return Answer(query.id, keys=tuple(dict.fromkeys(k for r in live for k in r.specs)))
        case "logs":
            return Answer(query.id, logs=_logs(state, query.about, now))
        case "update":
            found = find_requests(state, query.about)
            news = update(state, found[0], query.seen, now) if len(found) == 1 else None
            return Answer(query.id, update=news)
        case "graph":
            found = find_requests(state, query.about)
            return Answer(query.id, graph=_graph(found[0]) if len(found) == 1 else ())
        case "attempts":  # the broker adds those that have ended
            held = running(state, Scope(state, query.about), now)
            return Answer(query.id, attempts=tuple(islice(held, bounds.ATTEMPTS_RUNNING)))


# -- requests and workers ----------------------------------------------------------------------


def _request(state: FarmState, request: Request, now: float, *, anew: bool) -> RequestInfo:
    """``anew``: estimate its end anew."""
    return RequestInfo(
        request=request.id,
        title=cut(request.title, _TITLE),
        requester=request.requester.name,
        state=request.state,
        since=now - request.since,
        priority=request.priority,
        detached=request.detached,
        done=request.tally.get("done", 0),
        cached=request.tally.get("cached", 0),
        total=len(request.results) + request.open,
        running=request.running,
        failed=request.tally.get("failed", 0),
        left=future(state, request, now).left if anew else known(request, now),
        message=request.message or why_request(state, request, now),
    )


def _worker(state: FarmState, worker: Worker, now: float) -> WorkerInfo:
    condition, message = _condition(state, worker, now)
    return WorkerInfo(
        name=worker.name,
        arch=worker.arch,
        slots=worker.slots,
        since=now - worker.since,
        heard=now - worker.heard,
        running=tuple(_held(state, each, now) for each in worker.held.values()),
        state=condition,
        message=message,
        free_disk=worker.free_disk,
        free_memory=worker.free_memory,
        features=tuple(sorted(worker.features)),
    )


def _condition(
    state: FarmState, worker: Worker, now: float
) -> tuple[Literal["idle", "busy", "draining", "drained", "resting", "refusing", "silent"], str]:
    """The most important condition of a worker, and why it is in it."""
    if now - worker.heard > state.limits.stale:
        return "silent", ""
    if worker.draining or worker.drained:
        by = "by its own word" if worker.draining else "by an operator's word"
        return ("draining" if worker.held else "drained"), by
    if worker.refusing:
        return "refusing", worker.refusing
    if worker.backoff_until > now:
        return "resting", backing_off(worker, now)
    return ("busy" if worker.held else "idle"), ""


def _held(state: FarmState, attempt: Attempt, now: float) -> StepState:
    """An attempt on a worker; "cancelled" if no request wants it."""
    task = state.tasks.get(attempt.key)
    if task is not None and task.attempt is attempt:
        return snapshots.step(task, now)
    return StepState(
        attempt.key,
        "cancelled" if attempt.cancelling else "running",
        name=attempt.spec.name if attempt.spec else attempt.key[:12],
        fence=attempt.fence,
        worker=attempt.worker,
        phase=attempt.phase,
        running_for=now - attempt.since,
    )


# -- steps -------------------------------------------------------------------------------------


def _graph(request: Request) -> tuple[GraphStep, ...]:
    """The steps of a request; without what they need, if that is not known any more."""
    if request.graph:
        return tuple(request.graph)
    return tuple([GraphStep(one.key, one.name, one.kind) for one in request.results.values()])


def _why(state: FarmState, about: str, now: float) -> Iterator[str]:
    for request in find_requests(state, about):
        yield f"{request.title} is {request.state}"
        if request.over:
            if request.message:
                yield request.message
            continue
        for key, task in request.needed.items():
            if task.attempt is not None:
                yield str(why(state, key, now))
        if waits := why_request(state, request, now):
            yield waits
    live = list(_live(state, about, now)) if about else []
    for step in live:
        yield str(why(state, step.key, now))
    if about and not live:
        for step in _past(state, about):
            where = f" on {step.worker}" if step.worker else ""
            message = f": {step.message}" if step.message else ""
            yield f"{step.name} is {step.state}{where}{message}"


def _logs(state: FarmState, about: str, now: float) -> tuple[LogInfo, ...]:
    steps = _chosen((*_marked_past(state, about), *_marked_live(state, about, now)))
    found = {
        (step.key, step.fence): LogInfo(step.key, step.fence, step.name, step.log, step.state)
        for step in steps
        if step.fence or step.state in ("done", "cached")
    }
    return tuple(found.values())[-MANY_LOGS:]


#: A step, and whether its name is exactly the one that the user typed.
_Marked = tuple[StepState, bool]


def _live(state: FarmState, about: str, now: float) -> list[StepState]:
    """The steps with this name that some request wants now."""
    return _chosen(_marked_live(state, about, now))


def _past(state: FarmState, about: str) -> list[StepState]:
    """The results of the steps with this name, in each request that had them."""
    return _chosen(_marked_past(state, about))


def _marked_live(state: FarmState, about: str, now: float) -> Iterator[_Marked]:
    if not about:
        yield from ((snapshots.step(task, now), True) for task in state.tasks.values())
        return
    seen: set[str] = set()
    for request, key, exactly in _matching(state, about):
        task = request.needed.get(key)
        if task is not None and key not in seen:
            seen.add(key)
            yield snapshots.step(task, now), exactly


def _marked_past(state: FarmState, about: str) -> Iterator[_Marked]:
    if not about:
        requests = state.requests.values()
        yield from ((step, True) for each in requests for step in each.results.values())
        return
    for request, key, exactly in _matching(state, about):
        step = request.results.get(key)
        if step is not None:
            yield step, exactly


def _matching(state: FarmState, about: str) -> Iterator[tuple[Request, str, bool]]:
    """Keys of the steps that a user may mean, and whether the name matches exactly."""
    query = NameQuery(about)
    for request in state.requests.values():
        if request.index is None:
            request.index = StepIndex(request.specs.values() or request.results.values())
        for key in dict.fromkeys(request.index.exactly(query)):
            yield request, key, True
        for key in dict.fromkeys(request.index.similar(query)):
            yield request, key, False


def _chosen(steps: Iterable[_Marked]) -> list[StepState]:
    """The steps that match exactly, or if there are none, those that the user may mean."""
    exact: list[StepState] = []
    similar: list[StepState] = []
    for step, exactly in steps:
        (exact if exactly else similar).append(step)
    return exact or similar
