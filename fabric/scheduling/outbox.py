"""Gathers the effects of one event, each query, message and change once."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.scheduling.events import Changed, Effect, QueryStore, SendDesired
from fabric.scheduling.model import Request, Task

#: Keys in one query of the store.
MANY_KEYS = 500


class Outbox:
    """The effects of the current event, and the queries that the store has not answered.

    ``requests`` is the table of all requests.
    """

    __slots__ = ("_count", "_requests", "_tasks", "changed", "desired", "effects", "questions")

    def __init__(self, requests: Mapping[str, Request]) -> None:
        self.effects: list[Effect] = []
        #: number of a query -> the tasks that it is about
        self.questions: dict[int, list[Task]] = {}
        self._requests = requests
        self._count = 0
        self._tasks: list[Task] = []
        self.desired: dict[str, None] = {}  # workers to send their desired states
        self.changed: dict[str, None] = {}  # requests with news

    def query_store(self, task: Task) -> None:
        """Query the store for a task's artifact, at the end of the event."""
        self._tasks.append(task)

    def flush(self) -> list[Effect]:
        """All effects of the event, in order."""
        effects = self.effects
        if self._tasks:
            self._query()
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
            self._count += 1
            for task in some:
                task.question = self._count
            self.questions[self._count] = some
            self.effects.append(QueryStore(self._count, tuple([task.key for task in some])))
