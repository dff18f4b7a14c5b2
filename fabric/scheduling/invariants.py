"""Checks the invariants of the core after an event, for tests: each check reads the whole state."""

from __future__ import annotations

from collections import Counter

from fabric.scheduling.explain import history
from fabric.scheduling.model import Request, Task
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import LIVE, PRESENT, State


def validate(state: FarmState, now: float) -> None:
    """AssertionError, with the history of the task it is about, if anything is wrong."""
    queued = {
        (task.key, request.id) for pool in state.queues.all() for task, request in pool.queued()
    }
    for key, task in state.tasks.items():
        try:
            assert task.key == key
            _task(state, task, queued)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{history(task)}") from error
    states = Counter(task.state for task in state.tasks.values())
    assert states == Counter(state.tally)
    billed = Counter(task.billed.id for task in state.tasks.values() if task.billed is not None)
    for request in state.requests.values():
        assert request.running == billed[request.id]
        if request.over:
            assert not request.needed, "over, and still wants something"
            assert request.id not in request.requester.requests
        else:
            _request(state, request)
    for name, requester in state.requesters.items():
        assert requester.name == name
        assert requester.requests
        running = sum(request.running for request in requester.requests.values())
        assert requester.share.running == running
    for key, task in state.suspect.items():
        assert state.tasks[key] is task
        assert task.state not in PRESENT
    _workers(state)
    if now < state.dispatch_from:
        return
    for pool in state.queues.all():
        match = pool.match(now)
        assert match is None, f"{match.task.spec.name} could run on {match.worker}"


def _task(state: FarmState, task: Task, queued: set[tuple[str, str]]) -> None:
    assert task.state in LIVE or task.state in PRESENT, f"a {task.state} task is in the table"
    assert task.requests, "no request wants it"
    for request in task.requests.values():
        assert state.requests.get(request.id) is request, "wanted by an unknown request"
        assert request.needed.get(task.key) is task, "the request does not need it"
    assert (task.state is State.RUNNING) == (task.attempt is not None)
    if task.attempt is not None:
        worker = state.workers[task.attempt.worker]
        assert worker.held.get(task.attempt.id) is task.attempt, "its worker does not hold it"
        assert not task.attempt.cancelling, "its own attempt is being cancelled"
        assert task.fence == task.attempt.fence
        assert task.billed in task.requests.values(), "billed to a request that does not want it"
    else:
        assert task.billed is None
    if task.state in (State.BLOCKED, State.COMPARING, State.READY):
        awaited = [
            state.tasks[key]
            for key in dict.fromkeys(task.spec.depends)
            if key in state.tasks and task.key in state.tasks[key].waiters
        ]
        assert task.missing == len(awaited), f"misses {len(awaited)}, not {task.missing}"
        for dependency in awaited:
            assert dependency.state not in PRESENT, (
                f"waits for {dependency.spec.name}, which is present"
            )
            assert dependency.waiters[task.key] is task, "another task waits in its place"
            wanted = task.requests.keys() <= dependency.requests.keys()
            assert wanted, f"not all of its requests want {dependency.spec.name}"
    if task.state in PRESENT:
        assert not task.missing, "present, and waits"
        assert task.key not in state.orphans, "present, and an orphan builds it"
    if task.state is State.BLOCKED:
        assert task.expanded, "blocked, and not expanded"
        assert task.missing or task.key in state.dying, "blocked by nothing"
    if task.state is State.READY:
        assert not task.missing
        for request in task.requests.values():
            if request.state != "checking":
                assert (task.key, request.id) in queued, "ready, and in no queue"
    if task.state in (State.ASKING, State.COMPARING, State.VERIFYING):
        asked = task in state.outbox.questions.get(task.question, ())
        asked = asked or state.under_inspection(task.key)
        assert asked or task.unanswered, "waits for an answer to no query"


def _request(state: FarmState, request: Request) -> None:
    requester = state.requesters[request.requester.name]
    assert requester.requests[request.id] is request
    if request.state == "resolving":
        assert not request.needed
        return
    missing = asking = goals_left = guesses = 0
    expected = 0.0
    for key, task in request.needed.items():
        assert state.tasks[key] is task, "it needs another task of this key"
        assert request.id in task.requests, "the task does not know it"
        if task.state in PRESENT:
            continue
        assert key not in request.results, "open, and has a result"
        missing += 1
        goals_left += key in request.wanted
        guesses += task.guessed
        expected += task.expected
        if task.state is State.ASKING:
            assert key in request.asking
            asking += 1
    assert missing, "nothing is missing, and it is not over"
    lacks = request.failures or request.lost
    assert request.stopping <= bool(lacks) <= (request.stopping or request.keep_going)
    assert request.asking or request.state == "building", "all is known, and it does not build"
    assert (request.open, request.goals_left) == (missing, goals_left)
    assert (request.guesses, len(request.asking)) == (guesses, asking)
    assert abs(request.work_left - expected) < 1e-3 * (1 + expected)
    tally = Counter(result.state for result in request.results.values())
    assert tally == Counter(request.tally)


def _workers(state: FarmState) -> None:
    held = Counter(
        id(attempt) for worker in state.workers.values() for attempt in worker.held.values()
    )
    assert all(count == 1 for count in held.values()), "one attempt on two workers"
    for worker in state.workers.values():
        for attempt in worker.held.values():
            task = state.tasks.get(attempt.key)
            owned = task is not None and task.attempt is attempt
            orphan = state.orphans.get(attempt.key) is attempt
            of_key = state.dying.get(attempt.key, {})
            cancelling = of_key.get((worker.name, attempt.fence)) is attempt
            kinds = owned + orphan + cancelling + attempt.stuck
            assert kinds == 1, f"{attempt} is of {kinds} kinds"
            assert cancelling + attempt.stuck == attempt.cancelling
    for task in state.tasks.values():
        reserved = not task.reserved_on or task.key in state.workers[task.reserved_on].reserved
        assert reserved, f"{task.spec.name} has a slot that is not reserved"
    for worker in state.workers.values():
        for key in worker.reserved:
            assert state.tasks[key].reserved_on == worker.name, "a slot is reserved for nothing"
    for pool in state.queues.all():
        able = {name for name, worker in state.workers.items() if pool.serves(worker)}
        assert pool.members.keys() == able, "a pool has other workers than those that can do it"
    for attempt in state.orphans.values():
        assert held[id(attempt)], "an orphan that no worker holds"
    for dying in state.dying.values():
        assert dying
        assert all(held[id(each)] for each in dying.values()), "no worker holds a dying attempt"
    assert state.capacity == sum(worker.slots for worker in state.workers.values())
