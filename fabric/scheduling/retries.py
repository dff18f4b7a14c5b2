"""Faults and refusals: when a worker pauses, and when a task is tried again or fails.

A *fault* counts against the machine, which pauses, and against the task, which other workers try.
A *refusal* counts against neither: the task is offered to other workers, and to this one again
after a while.
"""

from __future__ import annotations

from fabric.scheduling.explain import unfit
from fabric.scheduling.lifecycle import expand, fail
from fabric.scheduling.model import Refusal, Task, Worker
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import TABLE, Cause, State

#: Seconds that a worker is assigned nothing new after a refusal.
_PAUSE = 1.0


def on_fault(
    state: FarmState, task: Task, name: str, message: str, cause: Cause = Cause.FAULTED
) -> None:
    """A machine was unable to do a task: another one may be able."""
    if not count_fault(state, task, name, message):
        try_again(state, task, cause, f"{name}: {message}")


def try_again(state: FarmState, task: Task, cause: Cause, detail: str) -> None:
    """A task is built again once its dependencies are there."""
    state.transition(task, cause, detail)
    expand(state, task)
    state.task_changed(task)


def count_fault(state: FarmState, task: Task, name: str, message: str) -> bool:
    """Count a fault of a worker; returns whether the task failed, as it was one too many."""
    worker = state.workers.get(name)
    if worker is not None:
        back_off(state, worker)
    task.faults[name] = message
    task.fault_count += 1
    few = task.fault_count < state.limits.faults
    if few or (task.state, Cause.EXHAUSTED) not in TABLE:
        return False
    if len(task.faults) < state.limits.faults and state.queues.has_candidate(task, state.now):
        return False  # one bad machine must not fail what a good one can do
    faults = "; ".join(f"{name}: {message}" for name, message in task.faults.items())
    fail(state, task, Cause.EXHAUSTED, f"no machine could do it: {faults}")
    return True


def on_refusal(state: FarmState, task: Task, worker: Worker, message: str) -> None:
    """A worker refuses a task for now."""
    before = task.refusals.get(worker.name)
    until = state.now + state.limits.cooldown
    task.refusals[worker.name] = Refusal(until, message, before.count + 1 if before else 1)
    state.timers.start(until, offer_again, task)
    _pause(state, worker, _PAUSE)
    try_again(state, task, Cause.REFUSED, f"{worker.name}: {message}")


def offer_again(state: FarmState, task: Task) -> None:
    """The cooldown after a refusal is over."""
    if task.state is State.READY:
        state.queues.update_avoid(task, state.now)


def back_off(state: FarmState, worker: Worker) -> None:
    """A worker is assigned nothing for a while, for longer after each fault in a row."""
    worker.faults += 1
    _pause(state, worker, min(state.limits.backoff, 2.0 ** (worker.faults - 1)))


def _pause(state: FarmState, worker: Worker, seconds: float) -> None:
    worker.backoff_until = max(worker.backoff_until, state.now + seconds)
    state.timers.start(worker.backoff_until, end_pause, worker.name)
    state.queues.update_room(worker.name, state.now)


def end_pause(state: FarmState, name: str) -> None:
    state.queues.update_room(name, state.now)


def fail_unserved(state: FarmState) -> None:
    """Fail tasks that no worker has been able to do for `Limits.unserved`.

    While there are no workers at all, nothing is known of what they will be able to do.
    """
    limit = state.limits.unserved
    if not limit or not state.workers:
        return
    for pool in state.queues.all():
        while not pool.members and state.now - pool.empty_since >= limit:
            task = pool.oldest(state.now)
            if task is None or state.now - task.history[-1].at < limit:
                break
            reason = f"no worker was able to do it for {limit:.0f} s: "
            reason += "; ".join(unfit(task, state.workers.values()))
            fail(state, task, Cause.EXHAUSTED, reason)
