"""Assigns ready tasks to workers."""

from __future__ import annotations

from fabric.scheduling.attempts import start
from fabric.scheduling.events import Began
from fabric.scheduling.model import Attempt
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import Cause
from fabric.scheduling.store import wait_again


def dispatch(state: FarmState) -> None:
    """Begin an attempt for every match of a ready task and a worker, the most urgent first."""
    if state.now < state.dispatch_from:
        return
    while (match := state.queues.match(state.now)) is not None:
        task, worker = match.task, match.worker
        if task.key in state.dying:
            state.transition(task, Cause.DYING)
            state.task_changed(task)
            continue
        if state.suspect and not state.suspect.keys().isdisjoint(task.spec.depends):
            state.transition(task, Cause.DAMAGED)
            wait_again(state, task)
            continue
        state.fence += 1
        attempt = Attempt(
            task.key,
            state.fence,
            worker,
            state.now,
            state.token(task.key, state.fence, worker),
            assigned_in=state.answers + 1,
        )
        state.workers[worker].held[task.key, state.fence] = attempt
        state.transition(task, Cause.ASSIGNED, worker)
        start(state, task, attempt, match.request)
        state.queues.update_room(worker, state.now)
        state.outbox.effects.append(Began(attempt.key, attempt.fence, worker, found=False))
        state.outbox.desired[worker] = None
