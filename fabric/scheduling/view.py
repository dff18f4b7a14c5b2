"""The core's state as messages: what a worker should do, where a request stands."""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING

from fabric.scheduling.states import State as TaskState
from fabric.scheduling.why import first, warning, why_request
from fabric.wire.messages import Assignment, Attempt, Desired, State, StepState, Update

if TYPE_CHECKING:
    from fabric.scheduling.core import Scheduler
    from fabric.scheduling.model import Request, Task, Worker

_SHOWN: dict[TaskState, State] = {
    TaskState.ASKING: "waiting",
    TaskState.BLOCKED: "waiting",
    TaskState.READY: "ready",
    TaskState.RUNNING: "running",
    TaskState.VERIFYING: "running",
    TaskState.CACHED: "cached",
    TaskState.DONE: "done",
    TaskState.FAILED: "failed",
    TaskState.DROPPED: "cancelled",
}


def desired(scheduler: Scheduler, worker: Worker, sequence: int) -> Desired:
    """Everything one worker should be doing."""
    start = []
    keep = []
    for attempt in worker.held.values():
        if attempt.doomed:
            continue
        task = scheduler.tasks.get(attempt.key)
        if not attempt.confirmed and task is not None:
            job = task.offer.job
            start.append(Assignment(attempt.key, attempt.fence, job, attempt.token))
        else:
            keep.append(Attempt(attempt.key, attempt.fence))
    return Desired(
        sequence=sequence,
        epoch=scheduler.epoch,
        start=tuple(start),
        keep=tuple(keep),
        settled=tuple(starmap(Attempt, worker.settled)),
    )


def step(task: Task, now: float) -> StepState:
    """A task as its requests see it, but for the message of a failure."""
    state = _SHOWN[task.state]
    expected = 0.0 if task.guessed else task.expected
    attempt = task.attempt
    offer = task.offer
    if attempt is not None:
        return StepState(
            task.key,
            state,
            name=offer.name,
            kind=offer.kind,
            log=offer.log,
            fence=attempt.fence,
            worker=attempt.worker,
            phase=attempt.phase,
            running_for=now - attempt.since,
            expected=expected,
            log_size=attempt.log_size,
        )
    outcome = task.outcome
    if outcome is None or state in ("waiting", "ready", "cached"):
        return StepState(
            task.key, state, name=offer.name, kind=offer.kind, log=offer.log, expected=expected
        )
    return StepState(
        task.key,
        state,
        name=offer.name,
        kind=offer.kind,
        log=offer.log,
        fence=outcome.fence,
        worker=task.builder,
        phase="verify" if task.state is TaskState.VERIFYING else "",
        expected=expected,
        seconds=outcome.seconds,
        log_size=outcome.log_size,
        log_sha256=outcome.log_sha256,
    )


def failure(task: Task, message: str, *, fault: bool) -> StepState:
    """A failed task, with why; ``fault`` as in `StepState`."""
    outcome = task.outcome
    return StepState(
        task.key,
        "failed",
        name=task.offer.name,
        kind=task.offer.kind,
        log=task.offer.log,
        fence=outcome.fence if outcome else task.fence,
        worker=task.builder,
        message=message,
        fault=fault,
        failed_phase=outcome.phase if outcome else "",
        failed_command=outcome.command if outcome else "",
        seconds=outcome.seconds if outcome else 0.0,
        log_size=outcome.log_size if outcome else 0,
        log_sha256=outcome.log_sha256 if outcome else "",
    )


def cancelled(task: Task, message: str = "") -> StepState:
    """A task that a request can do nothing more for."""
    return StepState(
        task.key,
        "cancelled",
        name=task.offer.name,
        kind=task.offer.kind,
        log=task.offer.log,
        fence=0 if message else task.fence,
        message=message,
    )


def update(scheduler: Scheduler, request: Request, seen: int, now: float) -> Update:
    """A request's news since version ``seen``."""
    steps = []
    # Before its steps were known there was no news of them.
    fresh = 0 if seen < request.known else max(0, seen - request.born)
    # Each once, where it changed last.
    for key in reversed(dict.fromkeys(reversed(request.news[fresh:]))):
        if (result := request.results.get(key)) is not None:
            steps.append(result)
        elif (task := request.needed.get(key)) is not None:
            steps.append(step(task, now))
    return Update(
        request=request.id,
        version=request.version,
        state=request.state,
        steps=tuple(steps),
        left=left(scheduler, request, now),
        message=request.message or why_request(scheduler, request, now),
        title=request.title if seen <= request.known else "",
        goals=request.goals if seen <= request.known else (),
        warning=warning(scheduler, request, now),
    )


def left(scheduler: Scheduler, request: Request, now: float) -> float:
    """Seconds until the end, by the longest path, or by all the work; 0: unknown."""
    if request.over or request.guesses or request.state == "resolving":
        return 0.0
    longest = 0.0
    task = first(scheduler, request)
    if task is not None:
        longest = request.ranks.get(task.key, 0.0)
        if task.attempt is not None:
            longest -= min(task.expected, now - task.attempt.since)
    return max(longest, request.work_left / max(1, scheduler.capacity))
