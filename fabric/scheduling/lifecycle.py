"""The life of tasks on behalf of requests: needed, expanded, failed, given up, dropped.

Work goes from the goals downwards.  A task exists because a request needs it; the store is queried
for it first, and only if its artifact is absent do its dependencies become tasks too.  A request
keeps the results of its steps itself, so a task whose build failed is removed, and a later request
tries again.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappush

from fabric.scheduling import snapshots
from fabric.scheduling.attempts import bill, cancel, enqueue, release_slot, stop, unblock
from fabric.scheduling.discards import discard
from fabric.scheduling.events import Abandon, Closed
from fabric.scheduling.model import Request, Task
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import PRESENT, Cause, State
from fabric.wire.messages import RequestState

_RUNS = frozenset({State.RUNNING, State.VERIFYING})

# -- needed --------------------------------------------------------------------------------


def need(state: FarmState, request: Request, keys: Iterable[str]) -> None:
    """A request wants these artifacts, and whatever they turn out to need."""
    stack = list(keys)
    stack.reverse()
    while stack:
        key = stack.pop()
        if key in request.needed:
            continue
        task = state.tasks.get(key)
        if task is None:
            state.count += 1
            spec = request.specs[key]
            task = Task(key, spec, state.count, *state.expectation(spec))
            state.tasks[key] = task
            state.outbox.query_store(task)
        request.needed[key] = task
        task.requests[request.id] = request
        if key in request.lost:  # another request tries again what failed for this one
            del request.lost[key]
            if key in request.failures:
                request.failures.remove(key)
        if task.state in PRESENT:
            record_present(state, request, task)
            continue
        open_step(request, task)
        if task.state is State.ASKING:
            request.asking[key] = None
        else:
            state.request_changed(request, key)
        if task.state is State.READY:
            enqueue(state, task, request)
        elif task.state is State.BLOCKED and task.expanded:
            stack.extend(reversed(task.spec.depends))


def expand(state: FarmState, task: Task) -> None:
    """A blocked task waits for its dependencies, if any is missing."""
    if task.missing or not task.expanded:
        depends = tuple(dict.fromkeys(task.spec.depends))
        for request in list(task.requests.values()):
            for key in depends:
                if _is_out_of_reach(state, request, key):
                    give_up(state, request, task, request.specs[key].name)
                    check_over(state, request)
                    break
            else:
                need(state, request, depends)
        if not task.requests:
            return
        # A task that was adopted while it waited is expanded again: its dependencies may have
        # been dropped, and other requests may want it now.
        task.expanded = True
        task.missing = 0
        for key in depends:
            dependency = state.tasks[key]
            if dependency.state not in PRESENT:
                task.missing += 1
                dependency.waiters[task.key] = task
    unblock(state, task)


def _is_out_of_reach(state: FarmState, request: Request, key: str) -> bool:
    """Whether a request cannot have a dependency any more."""
    if request.stopping:
        return key not in request.needed
    return key in request.lost and key not in state.tasks


def start_checked(state: FarmState) -> None:
    """Requests whose missing steps are all known start to build."""
    for request in list(state.checking.values()):
        if request.asking and not request.over:
            continue
        del state.checking[request.id]
        if not request.over:
            request.state = "building"
            for task in request.needed.values():
                if task.state is State.READY:
                    enqueue(state, task, request)


def open_step(request: Request, task: Task) -> None:
    """A request waits for a task."""
    request.record(task.key, None)
    request.open += 1
    request.work_left += task.expected
    request.guesses += task.guessed
    request.goals_left += task.key in request.wanted
    heappush(request.longest, (-request.ranks.get(task.key, 0.0), task.key))


def close_step(request: Request, task: Task) -> None:
    """A request no longer waits for a task."""
    request.open -= 1
    request.goals_left -= task.key in request.wanted
    request.work_left -= task.expected
    request.guesses -= task.guessed


def record_present(state: FarmState, request: Request, task: Task) -> None:
    request.asking.pop(task.key, None)
    request.record(task.key, snapshots.step(task, state.now))
    state.request_changed(request, task.key)


# -- failed --------------------------------------------------------------------------------


def fail(state: FarmState, task: Task, cause: Cause, message: str) -> None:
    """A task fails for all requests that want it now."""
    state.transition(task, cause, message)
    waiters = list(task.waiters.values())
    for request in list(task.requests.values()):
        request.failures.append(task.key)
        request.lost[task.key] = None
        fault = cause is not Cause.BROKE
        request.record(task.key, snapshots.failure(task, message, fault=fault))
        state.request_changed(request, task.key)
        drop(state, request, task)
        if request.keep_going or request.stopping:
            for waiter in waiters:
                give_up(state, request, waiter, task.spec.name)
        check_over(state, request)


def give_up(state: FarmState, request: Request, task: Task, culprit: str) -> None:
    """A request loses a task, and all that waits for it, because of ``culprit``."""
    stack = [task]
    while stack:
        task = stack.pop()
        if request.id not in task.requests:
            continue
        stack.extend(task.waiters.values())
        request.lost[task.key] = None
        message = f"needs {culprit}, which {'is missing' if request.stopping else 'failed'}"
        request.record(task.key, snapshots.cancelled(task, message))
        state.request_changed(request, task.key)
        drop(state, request, task)


def check_over(state: FarmState, request: Request) -> None:
    """Finish a request if it has all that it wants, or cannot have it."""
    lacking = request.failures or request.lost
    going_on = request.goals_left and not lacking
    if going_on or request.over or request.state == "resolving":
        return
    if not lacking:
        finish(state, request, "done", "")
        return
    if not (request.keep_going or request.fail_fast or request.stopping):
        _stop(state, request)
    if request.fail_fast or not request.open:
        finish(state, request, "failed", _failed_steps(request))


def _stop(state: FarmState, request: Request) -> None:
    """A request begins nothing more: it loses all its steps except those that run."""
    request.stopping = True
    for key, task in list(request.needed.items()):
        if task.state not in PRESENT and task.state not in _RUNS:
            request.lost[key] = None
            _record_unbuilt(state, request, task)
            drop(state, request, task)


def _failed_steps(request: Request) -> str:
    """The steps that a request failed for, in few words."""
    if not request.failures:  # another request had the failed step built, too late for this one
        key = next(iter(request.lost))
        return f"{request.specs[key].name} {request.results[key].message}"
    first, more = request.specs[request.failures[0]].name, len(request.failures) - 1
    return first + (f" and {more} more" if more else "")


def finish(state: FarmState, request: Request, outcome: RequestState, message: str) -> None:
    """A request is over."""
    if request.state == "resolving":
        state.outbox.effects.append(Abandon(request.id))
    request.state, request.message, request.ended = outcome, message, state.now
    needed, request.needed = request.needed, {}
    for task in needed.values():
        if task.state in PRESENT:  # quickly: it may be all of very many
            del task.requests[request.id]
            if not task.requests:
                state.remove(task)
            continue
        _record_unbuilt(state, request, task)
        let_go(state, request, task)
    # The rest answers later queries.
    discard(state, needed, request.specs, request.ranks, request.longest)
    request.specs, request.ranks, request.longest, request.lost = {}, {}, [], {}
    request.requester.remove(request)
    if not request.requester.requests:
        del state.requesters[request.requester.name]
    state.outbox.effects.append(Closed(request.id, outcome))
    state.request_changed(request)


def _record_unbuilt(state: FarmState, request: Request, task: Task) -> None:
    """A task is given up, since its request ends."""
    if task.key not in request.asking or task.key in state.suspect:  # it was reported before
        request.record(task.key, snapshots.cancelled(task))
        state.request_changed(request, task.key)


# -- dropped -------------------------------------------------------------------------------


def drop(state: FarmState, request: Request, task: Task) -> None:
    """A request no longer wants a task that is not present."""
    del request.needed[task.key]
    let_go(state, request, task)


def let_go(state: FarmState, request: Request, task: Task) -> None:
    """The same, for a request that forgets all of its tasks.  Removes the task after the last."""
    request.asking.pop(task.key, None)
    del task.requests[request.id]
    close_step(request, task)
    if task.requests:
        if task.billed is request:
            bill(state, task, next(iter(task.requests.values())))
        return
    if task.state is not State.FAILED:
        state.transition(task, Cause.UNWANTED)
    release_slot(state, task)
    if task.attempt is not None:
        cancel(state, task.attempt)
        stop(state, task)
    task.question = 0
    if task.missing:
        stop_waiting(state, task)
    state.remove(task)
    state.suspect.pop(task.key, None)
    orphan = state.orphans.get(task.key)
    if orphan is not None:
        cancel(state, orphan)


def stop_waiting(state: FarmState, task: Task) -> None:
    """A task waits no longer for missing dependencies."""
    task.missing = 0
    for key in task.spec.depends:
        dependency = state.tasks.get(key)
        if dependency is not None:
            dependency.waiters.pop(task.key, None)
