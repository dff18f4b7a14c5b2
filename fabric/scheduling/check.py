"""The invariants of the core, for tests: called after every event, they cost a whole look."""

from __future__ import annotations

from collections import Counter

from fabric.scheduling.core import Scheduler
from fabric.scheduling.model import Request, Task
from fabric.scheduling.states import LIVE, PRESENT, State
from fabric.scheduling.why import story


def validate(scheduler: Scheduler, now: float) -> None:
    """AssertionError, with the story of the task it is about, if anything is wrong."""
    queued = {
        (task.key, request.id) for pool in scheduler.pools.all() for task, request in pool.queued()
    }
    for key, task in scheduler.tasks.items():
        try:
            assert task.key == key
            _task(scheduler, task, queued)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{story(task)}") from error
    states = Counter(task.state for task in scheduler.tasks.values())
    assert states == Counter(scheduler.tally)
    charged = Counter(
        task.charged.id for task in scheduler.tasks.values() if task.charged is not None
    )
    for request in scheduler.requests.values():
        assert request.running == charged[request.id]
        if request.over:
            assert not request.needed, "over, and still wants something"
            assert request.id not in request.requester.requests
        else:
            _request(scheduler, request)
    for name, requester in scheduler.requesters.items():
        assert requester.name == name
        assert requester.requests
        running = sum(request.running for request in requester.requests.values())
        assert requester.share.running == running
    for key, task in scheduler.reopened.items():
        assert scheduler.tasks[key] is task
        assert task.state not in PRESENT
    _workers(scheduler)
    if now < scheduler.settled_at:
        return
    for pool in scheduler.pools.all():
        match = pool.match(now)
        assert match is None, f"{match.task.offer.name} could run on {match.worker}"


def _task(scheduler: Scheduler, task: Task, queued: set[tuple[str, str]]) -> None:
    state = task.state
    assert state in LIVE or state in PRESENT, f"a {state} task is in the table"
    assert task.requests, "a task that nobody wants is in the table"
    for request in task.requests.values():
        assert scheduler.requests.get(request.id) is request, "wanted by an unknown request"
        assert request.needed.get(task.key) is task, "wanted by a request that does not know"
    assert (state is State.RUNNING) == (task.attempt is not None)
    if task.attempt is not None:
        worker = scheduler.workers[task.attempt.worker]
        assert worker.held.get(task.attempt.id) is task.attempt, "its worker does not hold it"
        assert not task.attempt.doomed, "a doomed attempt is its own"
        assert task.fence == task.attempt.fence
        assert task.charged in task.requests.values(), "charged to one who does not want it"
    else:
        assert task.charged is None
    if state in (State.BLOCKED, State.READY):
        awaited = [
            scheduler.tasks[key]
            for key in dict.fromkeys(task.offer.depends)
            if key in scheduler.tasks and task.key in scheduler.tasks[key].waiters
        ]
        assert task.missing == len(awaited), f"misses {len(awaited)}, not {task.missing}"
        for dependency in awaited:
            assert dependency.state not in PRESENT, f"waits for {dependency.offer.name} in vain"
            assert dependency.waiters[task.key] is task, "nobody will wake it"
            wanted = task.requests.keys() <= dependency.requests.keys()
            assert wanted, f"needs {dependency.offer.name}, which not all who want it want"
    if state in PRESENT:
        assert not task.missing, "there, and waits"
        assert task.key not in scheduler.strays, "there, and is built all the same"
    if state is State.BLOCKED:
        assert task.expanded, "blocked, and its dependencies are not looked at"
        assert task.missing or task.key in scheduler.ghosts, "blocked by nothing"
    if state is State.READY:
        assert not task.missing
        for request in task.requests.values():
            if request.state != "checking":
                assert (task.key, request.id) in queued, "ready, and in no queue"
    if state in (State.ASKING, State.VERIFYING):
        asked = task in scheduler.questions.get(task.question, ())
        asked = asked or scheduler.in_doubt(task.key)
        assert asked or task.unanswered, "waits for an answer to a question never asked"


def _request(scheduler: Scheduler, request: Request) -> None:
    requester = scheduler.requesters[request.requester.name]
    assert requester.requests[request.id] is request
    if request.state == "resolving":
        assert not request.needed
        return
    missing = asking = goals_left = guesses = 0
    expected = 0.0
    for key, task in request.needed.items():
        assert scheduler.tasks[key] is task, "it wants a task that is another"
        assert request.id in task.requests, "it wants a task that does not know"
        if task.state in PRESENT:
            continue
        assert key not in request.results, "open, and it is known how"
        missing += 1
        goals_left += key in request.wanted
        guesses += task.guessed
        expected += task.expected
        if task.state is State.ASKING:
            assert key in request.asking
            asking += 1
    assert missing, "nothing is missing, and it is not over"
    assert request.asking or request.state == "building", "all is known, and it does not build"
    assert (request.open, request.goals_left) == (missing, goals_left)
    assert (request.guesses, len(request.asking)) == (guesses, asking)
    assert abs(request.work_left - expected) < 1e-3 * (1 + expected)
    tally = Counter(result.state for result in request.results.values())
    assert tally == Counter(request.tally)


def _workers(scheduler: Scheduler) -> None:
    held = Counter(
        id(attempt) for worker in scheduler.workers.values() for attempt in worker.held.values()
    )
    assert all(count == 1 for count in held.values()), "one attempt on two workers"
    for worker in scheduler.workers.values():
        for attempt in worker.held.values():
            task = scheduler.tasks.get(attempt.key)
            owned = task is not None and task.attempt is attempt
            stray = scheduler.strays.get(attempt.key) is attempt
            ghosts = scheduler.ghosts.get(attempt.key, {})
            ghost = ghosts.get((worker.name, attempt.fence)) is attempt
            kinds = owned + stray + ghost + attempt.stuck
            assert kinds == 1, f"{attempt} is of {kinds} kinds"
            assert ghost + attempt.stuck == attempt.doomed
    for task in scheduler.tasks.values():
        kept = not task.seat or task.key in scheduler.workers[task.seat].seats
        assert kept, f"{task.offer.name} has a slot that is not kept"
    for worker in scheduler.workers.values():
        for key in worker.seats:
            assert scheduler.tasks[key].seat == worker.name, "a slot is kept for nothing"
    for pool in scheduler.pools.all():
        assert pool.members.keys() <= scheduler.workers.keys(), "a pool has a lost worker"
    for attempt in scheduler.strays.values():
        assert held[id(attempt)], "a stray that nobody holds"
    for ghosts in scheduler.ghosts.values():
        assert ghosts
        assert all(held[id(attempt)] for attempt in ghosts.values()), "a ghost that nobody holds"
    assert scheduler.capacity == sum(worker.slots for worker in scheduler.workers.values())
