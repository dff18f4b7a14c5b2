"""Gathers the effects of one event, each query, message and change once."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.scheduling.events import (
    Changed,
    CompareStore,
    Effect,
    QueryStore,
    Reject,
    Result,
    SendDesired,
)
from fabric.scheduling.model import Request, Task
from fabric.scheduling.states import State
from fabric.wire.messages import Code

#: Keys in one query of the store.
MANY_KEYS = 500


class Outbox:
    """The effects of the current event, and the queries that the store has not answered.

    ``requests`` is the table of all requests.
    """

    __slots__ = (
        "_compared", "_count", "_requests", "_tasks", "changed", "desired", "effects", "questions",
    )  # fmt: skip

    def __init__(self, requests: Mapping[str, Request]) -> None:
        self.effects: list[Effect] = []
        #: number of a query -> the tasks that it is about
        self.questions: dict[int, list[Task]] = {}
        self._requests = requests
        self._count = 0
        self._tasks: list[Task] = []
        self._compared: list[Task] = []
        self.desired: dict[str, None] = {}  # workers to send their desired states
        self.changed: dict[str, None] = {}  # requests with news

    def query_store(self, task: Task) -> None:
        """Query the store for a task's artifact, at the end of the event."""
        self._tasks.append(task)

    def compare(self, task: Task) -> None:
        """Look for a step with contents equal to a task's, at the end of the event."""
        self._compared.append(task)

    def reject(self, about: str, code: Code, reason: str) -> None:
        """Reject the event for its sender."""
        self.effects.append(Reject(about, code, reason))

    def flush(self) -> list[Effect]:
        """All effects of the event, in order."""
        effects = self.effects
        if self._tasks:
            self._query()
        if self._compared:
            self._compare()
        if self.desired:
            effects.extend(map(SendDesired, self.desired))
            self.desired = {}
        if self.changed:
            for id in self.changed:
                request = self._requests.get(id)
                if request is not None:
                    effects.append(Changed(id, request.over))
            self.changed = {}
        self.effects = []
        return effects

    def _query(self) -> None:
        tasks = [task for task in self._tasks if task.requests]
        self._tasks = []
        for first in range(0, len(tasks), MANY_KEYS):
            some = tasks[first : first + MANY_KEYS]
            keys = tuple([task.key for task in some])
            verified = [task for task in some if task.state is State.VERIFYING]
            built = tuple([task.spec for task in verified])
            results = tuple(filter(None, map(_result, verified)))
            self.effects.append(QueryStore(self._number(some), keys, built, results))

    def _compare(self) -> None:
        tasks = [task for task in self._compared if task.requests]
        self._compared = []
        if tasks:
            steps = tuple([task.spec for task in tasks])
            self.effects.append(CompareStore(self._number(tasks), steps))

    def _number(self, tasks: list[Task]) -> int:
        """A new query about these tasks."""
        self._count += 1
        for task in tasks:
            task.question = self._count
        self.questions[self._count] = tasks
        return self._count


def _result(task: Task) -> Result | None:
    """What the last attempt of a task has built; None if its worker does not say."""
    outcome = task.outcome
    if outcome is None or not outcome.manifest:
        return None
    return Result(task.key, outcome.fence, task.builder, outcome.manifest)
