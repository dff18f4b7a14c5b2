"""The answers of the artifact store: artifacts present, absent, damaged.

A worker that finds a dependency damaged says so with the outcome of its attempt.  The dependency
becomes `ASKING` again (*suspect*), the task of the attempt waits for it, and so does every other
task that would begin with it; the store is inspected.  An artifact that is gone is built again, and
the attempt counts as nobody's fault.  If all of them are whole, the complaint counts as a fault of
the worker, so that a worker which lies ends as one that is broken, and disturbs nothing else.
"""

from __future__ import annotations

from fabric.scheduling.attempts import adopt, cancel, make_ready, release_slot, unblock
from fabric.scheduling.events import (
    InspectStore,
    Learned,
    StoreAnswered,
    StoreCompared,
    StoreFailed,
    StoreInspected,
)
from fabric.scheduling.lifecycle import (
    check_over,
    close_step,
    expand,
    fail,
    open_step,
    record_present,
    stop_waiting,
)
from fabric.scheduling.model import Attempt, Task
from fabric.scheduling.retries import count_fault, on_fault
from fabric.scheduling.state import Complaint, FarmState
from fabric.scheduling.states import PRESENT, Cause, State
from fabric.wire.messages import Outcome

# -- queries -------------------------------------------------------------------------------


def on_answered(state: FarmState, answer: StoreAnswered) -> None:
    for task in state.outbox.questions.pop(answer.question):
        if task.question != answer.question:
            continue  # it was dropped meanwhile
        task.question = task.unanswered = 0
        release_slot(state, task)
        verifying = task.state is State.VERIFYING
        if task.key in answer.present:
            # One that was there already may be anything's dependency.
            task.familiar = not verifying or task.key in answer.familiar
            if verifying:
                _learn(state, task)
            present(state, task)
        elif verifying:
            message = "what it built is not in the store"
            on_fault(state, task, task.builder, message, Cause.ABSENT)
        else:
            absent(state, task)


def on_compared(state: FarmState, answer: StoreCompared) -> None:
    for task in state.outbox.questions.pop(answer.question):
        if task.question != answer.question:
            continue
        task.question = 0
        if task.key in answer.equal:
            task.familiar = True
            present(state, task, Cause.EQUAL)
        else:
            _differs(state, task)


def _differs(state: FarmState, task: Task) -> None:
    """No step with contents equal to a task's is known: it has to be built."""
    task.compared = True
    if task.key in state.orphans:
        adopt(state, task, state.orphans[task.key])
    else:
        make_ready(state, task, Cause.DIFFERENT)


def on_store_failed(state: FarmState, event: StoreFailed) -> None:
    for task in state.outbox.questions.pop(event.question):
        if task.question != event.question:
            continue
        task.question = 0
        if task.state is State.COMPARING:
            _differs(state, task)
            continue
        task.unanswered += 1
        if task.unanswered >= state.limits.asks:
            _fail_unanswered(state, task, event.message)
        else:
            state.transition(task, Cause.UNANSWERED, event.message)
            state.timers.start(state.now + _delay(task.unanswered), query_again, task)


def query_again(state: FarmState, task: Task) -> None:
    asking = task.state in (State.ASKING, State.VERIFYING)
    if asking and not task.question and state.tasks.get(task.key) is task:
        state.outbox.query_store(task)


def _delay(failures: int) -> float:
    """Seconds until the store is queried again."""
    return 0.25 * 2.0**failures


def _fail_unanswered(state: FarmState, task: Task, message: str) -> None:
    fail(state, task, Cause.EXHAUSTED, f"the artifact store does not answer: {message}")


def _learn(state: FarmState, task: Task) -> None:
    """Remember how long a verified build took; what was copied took another time."""
    if task.outcome is not None and task.outcome.built and task.outcome.seconds > 0:
        spec, seconds = task.spec, task.outcome.seconds
        what = (spec.kind, spec.name, spec.arch)
        seconds = (state.durations.get(what, seconds) + seconds) / 2  # the past counts half
        state.durations[what] = seconds
        for request in task.requests.values():
            if not task.guessed:
                request.planned += task.expected
                request.took += task.outcome.seconds
        state.outbox.effects.append(Learned(*what, seconds))


# -- present and absent --------------------------------------------------------------------


def present(state: FarmState, task: Task, cause: Cause = Cause.PRESENT) -> None:
    """The store has the artifact of a task."""
    state.transition(task, cause)
    task.since = state.now
    if task.missing:
        stop_waiting(state, task)
    state.suspect.pop(task.key, None)
    if task.key in state.orphans:
        cancel(state, state.orphans[task.key])
    requests = list(task.requests.values())
    for request in requests:
        close_step(request, task)
        record_present(state, request, task)
    for waiter in task.waiters.values():
        waiter.missing -= 1
        if not waiter.missing:
            unblock(state, waiter)
    task.waiters.clear()
    for request in requests:
        check_over(state, request)


def absent(state: FarmState, task: Task) -> None:
    """The store does not have it: it has to be built, unless a worker already builds it."""
    state.transition(task, Cause.ABSENT)
    for request in task.requests.values():
        del request.asking[task.key]
    state.task_changed(task)
    if task.key in state.orphans:
        adopt(state, task, state.orphans[task.key])
    else:
        expand(state, task)


# -- damaged -------------------------------------------------------------------------------


def complain(state: FarmState, task: Task, attempt: Attempt, outcome: Outcome) -> bool:
    """An attempt found dependencies damaged.  Returns False if it names none."""
    needs = frozenset(task.spec.depends)
    named = [key for key in dict.fromkeys(outcome.damaged) if key in needs]
    if not named:
        return False
    suspects = []
    for key in named:
        dependency = state.tasks.get(key)
        # An artifact that became present after the attempt began is not the one that it read.
        if (
            dependency is not None
            and dependency.state in PRESENT
            and dependency.since <= attempt.since
        ):
            suspect(state, dependency, attempt.worker)
            suspects.append(key)
    if suspects:
        complaint = Complaint(task, attempt.worker, outcome.message, tuple(suspects))
        state.complaints.append(complaint)
        _inspect(state)
    state.transition(task, Cause.DAMAGED, f"{attempt.worker}: {outcome.message}")
    wait_again(state, task)
    return True


def wait_again(state: FarmState, task: Task) -> None:
    """Look anew at the dependencies of a task."""
    task.expanded = task.compared = False
    expand(state, task)
    state.task_changed(task)


def suspect(state: FarmState, task: Task, by: str) -> None:
    """An artifact that was present may be damaged."""
    state.transition(task, Cause.SUSPECTED, by)
    state.suspect[task.key] = task
    for request in task.requests.values():
        open_step(request, task)
        request.asking[task.key] = None
    state.task_changed(task)


def _inspect(state: FarmState) -> None:
    """Inspect the store for the complaints that wait, unless it is being inspected."""
    if state.complaints and not state.inspected:
        state.inspected, state.complaints = state.complaints, []
        inspect_again(state, None)


def inspect_again(state: FarmState, _: None) -> None:
    keys = dict.fromkeys(key for each in state.inspected for key in each.keys)
    state.outbox.effects.append(InspectStore(tuple(keys), state.inspected[0].worker))


def on_inspected(state: FarmState, event: StoreInspected) -> None:
    complaints, state.inspected = state.inspected, []
    suspects = dict.fromkeys(key for each in complaints for key in each.keys)
    if event.failure:
        state.inspections += 1
        if state.inspections < state.limits.asks:
            state.timers.start(state.now + _delay(state.inspections), inspect_again)
            # It is known which artifacts are gone, but not that the others are whole.
            state.inspected = complaints
            for key in suspects:
                if key in event.keys:
                    _clear(state, key, event)
            return
    else:
        for task, worker, message, keys in complaints:
            if state.tasks.get(task.key) is task and event.keys.isdisjoint(keys):
                count_fault(state, task, worker, message)
    state.inspections = 0
    for key in suspects:
        _clear(state, key, event)
    _inspect(state)


def _clear(state: FarmState, key: str, event: StoreInspected) -> None:
    """An artifact is suspect no longer: it is whole, gone, or the store does not answer."""
    task = state.tasks.get(key)
    if task is None:
        return
    gone = key in event.keys
    if gone and task.state in PRESENT:  # wanted again after it had been dropped
        suspect(state, task, "the store")
    if task.state is not State.ASKING or state.suspect.get(key) is not task:
        return
    if gone:
        _build_again(state, task)
    elif event.failure:
        _fail_unanswered(state, task, event.failure)
    else:
        present(state, task)


def _build_again(state: FarmState, task: Task) -> None:
    task.damages += 1
    if task.damages >= state.limits.damages:
        reason = f"the artifact store spoilt it {task.damages} times"
        fail(state, task, Cause.EXHAUSTED, reason)
    else:
        absent(state, task)
