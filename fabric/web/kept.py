"""Keeps the values that were used last, within a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Values by key.  Each counts as one more than its parts."""

    def __init__(self, parts: Callable[[V], int] = lambda _: 0) -> None:
        self._parts = parts
        self._values: OrderedDict[K, V] = OrderedDict()
        self._locks: dict[K, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: K) -> AsyncIterator[V | None]:
        """The value, None if there is none; others that want the same key wait meanwhile."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield self._values.get(key)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    def keep(self, key: K, value: V, most: int) -> None:
        """Keep a value, and forget those used longest ago until all count at most ``most``.

        This one stays even if it counts more.
        """
        self._values[key] = value
        self._values.move_to_end(key)
        count = len(self._values) + sum(map(self._parts, self._values.values()))
        while len(self._values) > 1 and count > most:
            _, oldest = self._values.popitem(last=False)
            count -= 1 + self._parts(oldest)

    def forget(self, key: K) -> None:
        self._values.pop(key, None)
