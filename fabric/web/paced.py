"""Makes costly views in threads, and less often the more they cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from fabric.web.kept import Kept

T = TypeVar("T")

#: A view is made again after so many times the processor time that it took.
TIMES = 10
#: Views that are kept, and made at a time.
KEPT = 16
AT_ONCE = 2


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
        self._made: Kept[Hashable, tuple[float, Any]] = Kept()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The view of that key, as ``make`` returns it, or has lately."""
        async with self._made.turn(key) as made:
            if made is not None and self._clock() < made[0]:
                found: T = made[1]
                return found
            async with self._turns:
                return await self._make(key, make)

    async def _make(self, key: Hashable, make: Callable[[], T]) -> T:
        def measured() -> tuple[T, float]:
            began = self._used()
            view = make()
            return view, self._used() - began

        view, cost = await asyncio.to_thread(measured)
        self._made.keep(key, (self._clock() + TIMES * cost, view), KEPT)
        return view
