"""What people ask of the fabric, answered from the core's state.  Pure reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from fabric.scheduling import view
from fabric.scheduling.named import Called, Index
from fabric.scheduling.why import resting, why, why_request
from fabric.wire.messages import Answer, LogInfo, Query, RequestInfo, StepState, WorkerInfo, cut

if TYPE_CHECKING:
    from fabric.scheduling.core import Scheduler
    from fabric.scheduling.model import Attempt, Request, Worker

#: Lines that say why.
MANY_LINES = 1000
#: Characters of a title in a list of all requests.
_TITLE = 200
#: At most so many logs are told of, the newest.
MANY_LOGS = 1000


def answer(scheduler: Scheduler, query: Query, now: float) -> Answer:
    """The answer to a query."""
    match query.what:
        case "requests":
            requests = scheduler.requests.values()
            told = tuple(_request(scheduler, each, now) for each in requests)
            return Answer(query.id, requests=told)
        case "workers":
            workers = scheduler.workers.values()
            return Answer(
                query.id, workers=tuple(_worker(scheduler, each, now) for each in workers)
            )
        case "why":
            lines = tuple(islice(_why(scheduler, query.about, now), MANY_LINES))
            error = "" if lines else f"no request or step is called {query.about} here"
            return Answer(query.id, error, lines=lines)
        case "pinned":
            live = (request for request in scheduler.requests.values() if not request.over)
            return Answer(query.id, keys=tuple(dict.fromkeys(k for r in live for k in r.offers)))
        case "logs":
            return Answer(query.id, logs=_logs(scheduler, query.about, now))


# -- requests and workers ----------------------------------------------------------------------


def _request(scheduler: Scheduler, request: Request, now: float) -> RequestInfo:
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
        left=view.left(scheduler, request, now),
        message=request.message or why_request(scheduler, request, now),
    )


def _worker(scheduler: Scheduler, worker: Worker, now: float) -> WorkerInfo:
    state, message = _condition(scheduler, worker, now)
    return WorkerInfo(
        name=worker.name,
        arch=worker.arch,
        slots=worker.slots,
        since=now - worker.since,
        heard=now - worker.heard,
        running=tuple(_held(scheduler, each, now) for each in worker.held.values()),
        state=state,
        message=message,
        free_disk=worker.free_disk,
        free_memory=worker.free_memory,
        features=tuple(sorted(worker.features)),
    )


def _condition(
    scheduler: Scheduler, worker: Worker, now: float
) -> tuple[Literal["idle", "busy", "draining", "drained", "resting", "refusing", "silent"], str]:
    """What is most worth knowing of a worker, and why."""
    if now - worker.heard > scheduler.limits.stale:
        return "silent", ""
    if worker.draining or worker.drained:
        why = "by its own word" if worker.draining else "by an operator's word"
        return ("draining" if worker.held else "drained"), why
    if worker.refusing:
        return "refusing", worker.refusing
    if worker.rests_until > now:
        return "resting", resting(worker, now)
    return ("busy" if worker.held else "idle"), ""


def _held(scheduler: Scheduler, attempt: Attempt, now: float) -> StepState:
    """An attempt on a worker, whoever wants it; "cancelled" if nobody does."""
    task = scheduler.tasks.get(attempt.key)
    if task is not None and task.attempt is attempt:
        return view.step(task, now)
    return StepState(
        attempt.key,
        "cancelled" if attempt.doomed else "running",
        name=task.offer.name if task else attempt.key[:12],
        fence=attempt.fence,
        worker=attempt.worker,
        phase=attempt.phase,
        running_for=now - attempt.since,
    )


# -- steps -------------------------------------------------------------------------------------


def _why(scheduler: Scheduler, about: str, now: float) -> Iterator[str]:
    for request in scheduler.find_requests(about):
        yield f"{request.title} is {request.state}"
        if request.over:
            if request.message:
                yield request.message
            continue
        for key, task in request.needed.items():
            if task.attempt is not None:
                yield str(why(scheduler, key, now))
        if waits := why_request(scheduler, request, now):
            yield waits
    live = list(_live(scheduler, about, now)) if about else []
    for step in live:
        yield str(why(scheduler, step.key, now))
    if about and not live:
        for step in _past(scheduler, about):
            where = f" on {step.worker}" if step.worker else ""
            told = f": {step.message}" if step.message else ""
            yield f"{step.name} is {step.state}{where}{told}"


def _logs(scheduler: Scheduler, about: str, now: float) -> tuple[LogInfo, ...]:
    steps = _chosen((*_marked_past(scheduler, about), *_marked_live(scheduler, about, now)))
    found = {
        (step.key, step.fence): LogInfo(step.key, step.fence, step.name, step.log, step.state)
        for step in steps
        if step.fence or step.state in ("done", "cached")
    }
    return tuple(found.values())[-MANY_LOGS:]


#: A step, and whether it is called just as a user says.
_Marked = tuple[StepState, bool]


def _live(scheduler: Scheduler, about: str, now: float) -> list[StepState]:
    """The steps that somebody wants now, and that a user means."""
    return _chosen(_marked_live(scheduler, about, now))


def _past(scheduler: Scheduler, about: str) -> list[StepState]:
    """What became of the steps that a user means, for those who wanted them."""
    return _chosen(_marked_past(scheduler, about))


def _marked_live(scheduler: Scheduler, about: str, now: float) -> Iterator[_Marked]:
    if not about:
        yield from ((view.step(task, now), True) for task in scheduler.tasks.values())
        return
    told: set[str] = set()
    for request, key, exactly in _called(scheduler, about):
        task = request.needed.get(key)
        if task is not None and key not in told:
            told.add(key)
            yield view.step(task, now), exactly


def _marked_past(scheduler: Scheduler, about: str) -> Iterator[_Marked]:
    if not about:
        requests = scheduler.requests.values()
        yield from ((step, True) for each in requests for step in each.results.values())
        return
    for request, key, exactly in _called(scheduler, about):
        step = request.results.get(key)
        if step is not None:
            yield step, exactly


def _called(scheduler: Scheduler, about: str) -> Iterator[tuple[Request, str, bool]]:
    """Keys of steps that a user may mean, and whether they are called just so."""
    called = Called(about)
    for request in scheduler.requests.values():
        if request.index is None:
            request.index = Index(request.offers.values() or request.results.values())
        for key in dict.fromkeys(request.index.exactly(called)):
            yield request, key, True
        for key in dict.fromkeys(request.index.similar(called)):
            yield request, key, False


def _chosen(steps: Iterable[_Marked]) -> list[StepState]:
    """Those called just so, or else those that may be meant."""
    exact: list[StepState] = []
    similar: list[StepState] = []
    for step, exactly in steps:
        (exact if exactly else similar).append(step)
    return exact or similar
