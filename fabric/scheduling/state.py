"""The state of one broker: its tables, and the accounting that every change of them needs.

`FarmState` is flat and slotted; the functions of this package change it.  ``state.now`` is the time
of the current event.
"""

from __future__ import annotations

from typing import NamedTuple

from fabric.scheduling.model import (
    DEFAULT_SECONDS,
    HISTORY_LENGTH,
    Attempt,
    Durations,
    Limits,
    LostWorker,
    Request,
    Requester,
    Task,
    Transition,
    Worker,
)
from fabric.scheduling.outbox import Outbox
from fabric.scheduling.plan import Validation
from fabric.scheduling.queues import Queues
from fabric.scheduling.states import TABLE, Cause, IllegalTransition, State
from fabric.scheduling.timers import Timers
from fabric.scheduling.tokens import Tokens
from fabric.wire.messages import Answer, StepSpec

#: The fences of one run of the broker start at its epoch times this.
FENCES = 1_000_000_000


class Arrow:
    """A line of the table of transitions, and how many times tasks took it."""

    __slots__ = ("then", "times")

    def __init__(self, then: State) -> None:
        self.then = then
        self.times = 0


class Complaint(NamedTuple):
    """A worker found dependencies of a task damaged."""

    task: Task
    worker: str
    message: str
    keys: tuple[str, ...]


class FarmState:
    """All that one broker knows."""

    # Slots, for each event reads very many of these.
    __slots__ = (
        "_removed", "answers", "arrows", "awake", "capacity", "checking", "commands", "complaints",
        "count", "discarded", "dispatch_from", "drained", "durations", "dying", "epoch", "fence",
        "first_fence", "grace_until", "graph_steps", "graphs", "inspected", "inspections", "kept",
        "kept_steps", "left", "limits", "lost_workers", "now", "orphans", "outbox", "queues",
        "requesters", "requests", "startup_until", "suspect", "tasks", "timers", "token",
        "validations", "versions", "workers",
    )  # fmt: skip

    def __init__(
        self,
        limits: Limits,
        durations: Durations,
        *,
        epoch: int,
        secret: bytes,
        drained: frozenset[str],
        now: float,
    ) -> None:
        self.limits = limits
        self.now = now
        self.awake = now  # when the last event was handled
        self.epoch = epoch
        self.first_fence = self.fence = epoch * FENCES
        #: grows with the version of every request, so that a request that comes again begins above
        self.versions = self.fence
        self.count = 0  # numbers tasks, workers and requests
        self.answers = 0  # sequence of the last `Desired`
        self.durations = dict(durations)
        self.token = Tokens(secret)

        self.tasks: dict[str, Task] = {}
        self.arrows = {way: Arrow(then) for way, then in TABLE.items()}
        self._removed = dict.fromkeys(State, 0)  # removed tasks, by their last state
        #: tasks that were present once and are to be present again, while they are not
        self.suspect: dict[str, Task] = {}
        self.complaints: list[Complaint] = []  # that wait for an inspection
        self.inspected: list[Complaint] = []  # that the store is inspected for
        self.inspections = 0  # times in a row that the store failed to answer

        self.requests: dict[str, Request] = {}
        self.requesters: dict[str, Requester] = {}  # of requests that are not over
        self.validations: dict[str, Validation] = {}  # of requests that are not validated yet
        self.checking: dict[str, Request] = {}  # requests whose missing steps are not all known
        self.left: dict[str, None] = {}  # requests that were left
        self.kept: dict[str, Request] = {}  # over, and nobody watches; oldest first
        self.kept_steps = 0
        self.graphs: dict[str, Request] = {}  # of these, those that have their graph
        self.graph_steps = 0

        self.workers: dict[str, Worker] = {}
        self.capacity = 0  # slots of all workers
        self.drained = dict.fromkeys(sorted(drained))
        self.lost_workers: dict[str, LostWorker] = {}  # longest lost first
        self.commands: dict[str, Answer] = {}  # of operators
        #: attempts of no running task (yet), by key
        self.orphans: dict[str, Attempt] = {}
        #: cancelled attempts not known to have ended: key -> (worker, fence) -> attempt
        self.dying: dict[str, dict[tuple[str, int], Attempt]] = {}

        self.queues = Queues(limits, self.workers)
        self.timers = Timers()
        self.outbox = Outbox(self.requests)
        self.discarded: list[dict[str, object] | list[object]] = []
        self.grace_until = now + limits.grace
        self.startup_until = now + limits.startup
        self.dispatch_from = now

    # -- tasks -------------------------------------------------------------------------------

    def transition(self, task: Task, cause: Cause, detail: str = "") -> None:
        """Move a task as the table says.  IllegalTransition if the table does not list it."""
        try:
            arrow = self.arrows[task.state, cause]
        except KeyError:
            past = "; ".join(f"{line.cause} -> {line.state}" for line in task.history)
            raise IllegalTransition(
                f"{task.spec.name}: {cause.name} in state {task.state} (history: {past})"
            ) from None
        arrow.times += 1
        task.state = then = arrow.then
        history = task.history
        history.append(Transition(self.now, cause, then, detail))
        if len(history) > HISTORY_LENGTH:
            del history[1]  # the first line stays

    def remove(self, task: Task) -> None:
        del self.tasks[task.key]
        self._removed[task.state] += 1

    @property
    def tally(self) -> dict[State, int]:
        """Number of tasks in each state."""
        found = {state: -count for state, count in self._removed.items()}
        found[State.ASKING] += len(self.tasks) + sum(self._removed.values())  # all begin there
        for (before, _), arrow in self.arrows.items():
            found[before] -= arrow.times
            found[arrow.then] += arrow.times
        return found

    def under_inspection(self, key: str) -> bool:
        """Whether the store is, or soon will be, inspected for an artifact."""
        return any(key in each.keys for each in (*self.inspected, *self.complaints))

    # -- news ------------------------------------------------------------------------------

    def task_changed(self, task: Task) -> None:
        """There is news of a task, for all requests that want it."""
        self.versions += len(task.requests)
        changed = self.outbox.changed
        for id, request in task.requests.items():
            request.news.append(task.key)
            changed[id] = None

    def request_changed(self, request: Request, key: str = "") -> None:
        """There is news of a request, or of one of its steps."""
        self.versions += 1
        request.news.append(key)
        self.outbox.changed[request.id] = None

    # -- what is expected ------------------------------------------------------------------

    def expected(self, spec: StepSpec) -> float:
        """Seconds that a step should take."""
        return self.expectation(spec)[0]

    def expectation(self, spec: StepSpec) -> tuple[float, bool]:
        """The same, and whether it is a guess (a stratum takes next to no time)."""
        kind = spec.kind
        seconds = self.durations.get((kind, spec.name, spec.arch))
        if seconds is not None:
            return seconds, False
        return DEFAULT_SECONDS.get(kind, 60.0), kind != "stratum"
