"""Keeps actions that are due at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

#: Takes the state, and the subject that the timer was started with.
Action = Callable[[Any, Any], None]


class Timers:
    """Actions by the time they are due; of those due at once, the older first."""

    __slots__ = ("_count", "_heap", "due")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._count = 0
        self.due = math.inf  # when the next is due; infinity if there is none

    def start(self, due: float, action: Action, subject: object = None) -> None:
        self._count += 1
        heappush(self._heap, (due, self._count, action, subject))
        self.due = self._heap[0][0]

    def pop(self) -> tuple[Action, Any]:
        """The action that is due first, and its subject."""
        _, _, action, subject = heappop(self._heap)
        self.due = self._heap[0][0] if self._heap else math.inf
        return action, subject
