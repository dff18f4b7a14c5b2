"""Makes messages of a task's or worker's present state."""

from __future__ import annotations

from itertools import starmap

from fabric.scheduling.model import Task, Worker
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import Cause
from fabric.scheduling.states import State as TaskState
from fabric.wire.messages import Assignment, Attempt, Desired, State, StepState

#: Why a step is cached that was not when its request began.
UNCHANGED = "it is made from the same contents as before"
_SHOWN: dict[TaskState, State] = {
    TaskState.ASKING: "waiting",
    TaskState.BLOCKED: "waiting",
    TaskState.COMPARING: "waiting",
    TaskState.READY: "ready",
    TaskState.RUNNING: "running",
    TaskState.VERIFYING: "running",
    TaskState.CACHED: "cached",
    TaskState.DONE: "done",
    TaskState.FAILED: "failed",
    TaskState.DROPPED: "cancelled",
}


def desired(state: FarmState, worker: Worker, sequence: int) -> Desired:
    """Everything that a worker should be doing."""
    start = []
    keep = []
    for attempt in worker.held.values():
        if attempt.cancelling:
            continue
        task = state.tasks.get(attempt.key)
        if not attempt.confirmed and task is not None:
            job = task.spec.job
            start.append(Assignment(attempt.key, attempt.fence, job, attempt.token))
        else:
            keep.append(Attempt(attempt.key, attempt.fence))
    return Desired(
        sequence=sequence,
        epoch=state.epoch,
        start=tuple(start),
        keep=tuple(keep),
        acked=tuple(starmap(Attempt, worker.acked)),
    )


def step(task: Task, now: float) -> StepState:
    """A task as its requests see it, unless it failed or was given up."""
    shown = _SHOWN[task.state]
    expected = 0.0 if task.guessed else task.expected
    attempt = task.attempt
    spec = task.spec
    if attempt is not None:
        return StepState(
            task.key,
            shown,
            name=spec.name,
            kind=spec.kind,
            log=spec.log,
            fence=attempt.fence,
            worker=attempt.worker,
            phase=attempt.phase,
            running_for=now - attempt.since,
            expected=expected,
            log_size=attempt.log_size,
        )
    outcome = task.outcome
    if outcome is None or shown in ("waiting", "ready", "cached"):
        return StepState(
            task.key,
            shown,
            name=spec.name,
            kind=spec.kind,
            log=spec.log,
            expected=expected,
            message=UNCHANGED if shown == "cached" and _is_equal(task) else "",
        )
    return StepState(
        task.key,
        shown,
        name=spec.name,
        kind=spec.kind,
        log=spec.log,
        fence=outcome.fence,
        worker=task.builder,
        phase="verify" if task.state is TaskState.VERIFYING else "",
        expected=expected,
        seconds=outcome.seconds,
        log_size=outcome.log_size,
        log_sha256=outcome.log_sha256,
    )


def _is_equal(task: Task) -> bool:
    """Whether a present task was not built, since a step with equal contents was."""
    return bool(task.history) and task.history[-1].cause is Cause.EQUAL


def failure(task: Task, message: str, *, fault: bool) -> StepState:
    """A failed task, and why it failed; ``fault`` as in `StepState`."""
    outcome = task.outcome
    return StepState(
        task.key,
        "failed",
        name=task.spec.name,
        kind=task.spec.kind,
        log=task.spec.log,
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
    """A task that is given up for a request."""
    return StepState(
        task.key,
        "cancelled",
        name=task.spec.name,
        kind=task.spec.kind,
        log=task.spec.log,
        fence=0 if message else task.fence,
        message=message,
    )
