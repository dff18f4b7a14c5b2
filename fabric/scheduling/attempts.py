"""Attempts at tasks: how they begin, are billed, cancelled, and cease to count.

An attempt that a worker holds is of one kind: the attempt of a running task; an *orphan*, which
may become one; or *cancelling*: left out of the worker's desired state, so that the worker kills
it.  A cancelling attempt blocks its task, as the task must not run twice at once; after
`Limits.kill` it is *stuck*, and blocks it no more.
"""

from __future__ import annotations

from fabric.scheduling.model import Attempt, Request, Task, Worker
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import Cause, State


def start(state: FarmState, task: Task, attempt: Attempt, request: Request) -> None:
    """An attempt becomes the task's, billed to this request."""
    task.attempt, task.fence, task.builder = attempt, attempt.fence, attempt.worker
    attempt.spec = task.spec
    bill(state, task, request)
    state.task_changed(task)


def adopt(state: FarmState, task: Task, attempt: Attempt) -> None:
    """An attempt that a worker holds already becomes the task's."""
    state.transition(task, Cause.ADOPTED, attempt.worker)
    state.orphans.pop(task.key, None)
    start(state, task, attempt, next(iter(task.requests.values())))


def stop(state: FarmState, task: Task) -> None:
    """The attempt of a task is no longer its own."""
    task.attempt = None
    bill(state, task, None)


def bill(state: FarmState, task: Task, request: Request | None) -> None:
    """A running task uses this request's share of the workers from now on."""
    now, billed = state.now, task.billed
    if billed is not None:
        seconds = now - task.billed_at
        billed.share.end(seconds, now)
        billed.requester.share.end(seconds, now)
        state.queues.moved(billed, now)
    task.billed, task.billed_at = request, now
    if request is not None:
        request.share.begin(now)
        request.requester.share.begin(now)


# -- cancelling ----------------------------------------------------------------------------


def cancel(state: FarmState, attempt: Attempt) -> None:
    """No request wants an attempt any more: have it killed."""
    attempt.cancelling = True
    if state.orphans.get(attempt.key) is attempt:
        del state.orphans[attempt.key]
    state.outbox.desired[attempt.worker] = None
    if not attempt.stuck:
        dying = state.dying.setdefault(attempt.key, {})
        dying[attempt.worker, attempt.fence] = attempt
        state.timers.start(state.now + state.limits.kill, check_cancelled, attempt)


def check_cancelled(state: FarmState, attempt: Attempt) -> None:
    """A worker that does not end a cancelled attempt blocks only itself."""
    dying = state.dying.get(attempt.key, {})
    if dying.get((attempt.worker, attempt.fence)) is attempt:
        attempt.stuck = True
        if wait_no_longer(state, attempt) and (task := state.tasks.get(attempt.key)) is not None:
            unblock(state, task)


def wait_no_longer(state: FarmState, attempt: Attempt) -> bool:
    """An attempt blocks its task no more; returns whether it was the last that did."""
    dying = state.dying.get(attempt.key, {})
    if dying.pop((attempt.worker, attempt.fence), None) is None or dying:
        return False
    del state.dying[attempt.key]
    return True


def detach(state: FarmState, attempt: Attempt, task: Task | None) -> Task | None:
    """An attempt is over or lost; returns the task of its key if it was that task's attempt."""
    if task is not None and task.attempt is attempt:
        stop(state, task)
        return task
    if state.orphans.get(attempt.key) is attempt:
        del state.orphans[attempt.key]
    if attempt.cancelling and wait_no_longer(state, attempt) and task is not None:
        unblock(state, task)
    return None


# -- ready tasks ---------------------------------------------------------------------------


def unblock(state: FarmState, task: Task) -> None:
    """A task is ready if nothing blocks it any more, and no step has equal contents."""
    if task.state is not State.BLOCKED or task.missing or task.key in state.dying:
        return
    if _may_have_equal(state, task):
        state.transition(task, Cause.FAMILIAR)
        state.outbox.compare(task)
    else:
        make_ready(state, task, Cause.UNBLOCKED)


def make_ready(state: FarmState, task: Task, cause: Cause) -> None:
    """A task waits for a worker."""
    state.transition(task, cause)
    spec = task.spec
    if spec.again:
        built = state.tasks.get(spec.again)
        task.first = (built.builder if built is not None else "") or spec.built_by
    for request in task.requests.values():
        enqueue(state, task, request)
    state.task_changed(task)


def _may_have_equal(state: FarmState, task: Task) -> bool:
    """Whether a step with contents equal to a task's may have been built.

    Not if a dependency has an output that was unknown before: so a first build looks for nothing.
    """
    spec = task.spec
    if task.compared or spec.kind == "stratum" or not spec.depends:
        return False
    tasks = state.tasks
    return all((below := tasks.get(key)) is not None and below.familiar for key in spec.depends)


def enqueue(state: FarmState, task: Task, request: Request) -> None:
    """A ready task waits for a worker, once all missing steps of its request are known.

    Before that, the first task to be ready would be taken for the most urgent.
    """
    if request.state == "building":
        state.queues.push(task, request, state.now)


def reserve_slot(state: FarmState, task: Task, worker: Worker) -> None:
    """While an artifact is verified, reserve its worker's slot for a task that waits only for it.

    Otherwise each step of the longest path would lose its worker to something less urgent.
    """
    for waiter in task.waiters.values():
        if waiter.missing == 1 and state.queues.would_be_first(waiter, state.now):
            task.reserved_on = worker.name
            worker.reserved[task.key] = None
            return


def release_slot(state: FarmState, task: Task) -> None:
    if task.reserved_on:
        name, task.reserved_on = task.reserved_on, ""
        del state.workers[name].reserved[task.key]
        state.queues.update_room(name, state.now)
