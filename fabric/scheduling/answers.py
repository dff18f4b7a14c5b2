"""What people ask of the fabric, answered from the core's state.  Pure reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from fabric.scheduling import view
from fabric.scheduling.why import resting, why, why_request
from fabric.wire.messages import Answer, LogInfo, Query, RequestInfo, StepState, WorkerInfo

if TYPE_CHECKING:
    from fabric.scheduling.core import Scheduler
    from fabric.scheduling.model import Attempt, Request, Worker

#: At most so many logs are told of, the newest.
MANY_LOGS = 1000
#: This much of a key may stand for the whole.
_PREFIX = 6


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
            lines = tuple(_why(scheduler, query.about, now))
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
        title=request.title,
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
    live = _found(_live(scheduler, now), about) if about else []
    for step in live:
        yield str(why(scheduler, step.key, now))
    if about and not live:
        for step in _found(_past(scheduler), about):
            where = f" on {step.worker}" if step.worker else ""
            told = f": {step.message}" if step.message else ""
            yield f"{step.name} is {step.state}{where}{told}"


def _logs(scheduler: Scheduler, about: str, now: float) -> tuple[LogInfo, ...]:
    steps = _found((*_past(scheduler), *_live(scheduler, now)), about)
    found = {
        (step.key, step.fence): LogInfo(step.key, step.fence, step.name, step.log, step.state)
        for step in steps
        if step.fence or step.state in ("done", "cached")
    }
    return tuple(found.values())[-MANY_LOGS:]


def _live(scheduler: Scheduler, now: float) -> Iterator[StepState]:
    """All steps that somebody wants now."""
    return (view.step(task, now) for task in scheduler.tasks.values())


def _past(scheduler: Scheduler) -> Iterator[StepState]:
    """What became of steps for those who wanted them."""
    for request in scheduler.requests.values():
        yield from request.results.values()


def _found(steps: Iterable[StepState], about: str) -> list[StepState]:
    """The steps that a user means: called just so, or else something like it; "" means all."""
    if not about:
        return list(steps)
    exact, similar = [], []
    for step in steps:
        if about in (step.name, step.log, step.key) or step.log == f"build-step-{about}.log":
            exact.append(step)
        elif about.startswith(f"{step.name}-") or (
            len(about) >= _PREFIX and step.key.startswith(about)
        ):
            similar.append(step)
    return exact or similar
