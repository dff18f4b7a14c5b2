"""Makes costly views in threads, and less often the more they cost."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

#: A view is made again after so many times the processor time that it took.
TIMES = 10
#: Views that are kept.
KEPT = 16


class Paced:
    """The views that were asked for last: each takes a tenth of one core, at most."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """``used`` tells the processor time that its thread has taken."""
        self._clock = clock
        self._used = used
        self._made: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._locks: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The view of that key, as ``make`` returns it, or has lately."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                until, view = self._made.get(key, (0.0, None))
                if view is None or self._clock() >= until:
                    view = await self._make(key, make)
                found: T = view
                return found
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _make(self, key: Hashable, make: Callable[[], T]) -> T:
        def measured() -> tuple[T, float]:
            began = self._used()
            view = make()
            return view, self._used() - began

        view, cost = await asyncio.to_thread(measured)
        self._made[key] = self._clock() + TIMES * cost, view
        self._made.move_to_end(key)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return view
