"""Keeps the entries of a queue in the order of their shares' loads."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

from fabric.scheduling.shares import TICK, Share

T = TypeVar("T")


class Turns(Generic[T]):
    """One entry for each share; the entry of the share with the smallest load comes first.

    Loads change with each tick, and then `first` sorts all entries anew.  Within a tick a load
    that has grown is noticed when its entry is first; for one that has fallen `moved` must be
    called.
    """

    __slots__ = ("_entries", "_heap", "_placed", "_tick")

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Share, T]] = {}
        self._placed: dict[int, float] = {}  # number of a share -> its load in the heap
        self._heap: list[tuple[float, int]] = []  # (load, number); some are outdated
        self._tick = -1.0

    def add(self, share: Share, entry: T, now: float) -> None:
        self._entries[share.number] = (share, entry)
        if len(self._entries) == 2:
            self._tick = -1.0  # the order begins to matter
        else:
            self.moved(share, now)

    def remove(self, share: Share) -> None:
        del self._entries[share.number]
        self._placed.pop(share.number, None)

    def get(self, share: Share) -> T | None:
        found = self._entries.get(share.number)
        return None if found is None else found[1]

    def all(self) -> list[T]:
        return [entry for _, entry in self._entries.values()]

    def moved(self, share: Share, now: float) -> None:
        """The load of a share may have changed."""
        if now // TICK != self._tick or share.number not in self._entries:
            return  # `first` will sort: until then, the heap must not grow
        load = share.load(now)
        if self._placed.get(share.number) != load:
            self._placed[share.number] = load
            heappush(self._heap, (load, share.number))

    def first(self, now: float) -> tuple[Share, T] | None:
        """The entry that comes first, with its share; None if there is none."""
        if len(self._entries) < 2:
            return next(iter(self._entries.values()), None)
        tick = now // TICK
        if tick != self._tick:
            self._sort(now)
            self._tick = tick
        while True:
            load, number = self._heap[0]
            if self._placed.get(number) != load:
                heappop(self._heap)
                continue
            share, entry = self._entries[number]
            if (current := share.load(now)) == load:
                return share, entry
            self._placed[number] = current
            heapreplace(self._heap, (current, number))

    def _sort(self, now: float) -> None:
        self._placed = {number: share.load(now) for number, (share, _) in self._entries.items()}
        self._heap = [(load, number) for number, load in self._placed.items()]
        heapify(self._heap)
