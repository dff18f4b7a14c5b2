"""Fair shares of the workers: between those who ask, and between what they ask for.

A share's *load* is what it uses of the workers now, and what it used lately, by its weight; the
smallest load is served first, the older of equal ones.  What was used counts half after
`HALF_LIFE` and in the end not at all, so nobody starves: who gets nothing comes to nothing,
and whoever gets something is above that.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

#: Seconds after which what was used counts half.
HALF_LIFE = 60.0
#: Every attempt counts as this many seconds, at least; less than a tenth of it is nothing.
LEAST = 1.0
#: Seconds of use that make a load of 1: what one worker's slot, used all the time, comes to.
_FULL = HALF_LIFE / 0.6931471805599453


class Share(msgspec.Struct, eq=False):
    """What somebody uses of the workers."""

    number: int  # breaks ties
    weight: float = 1.0
    running: int = 0
    used: float = 0.0  # seconds of workers' slots, as of ``at``
    at: float = 0.0
    _load: float = 0.0  # as of ``_loaded``; many are compared many times at one moment
    _loaded: float = -1.0

    def load(self, now: float) -> float:
        """The smaller, the sooner it is served."""
        if now != self._loaded:
            self._load = (self.running + self.used_lately(now) / _FULL) / self.weight
            self._loaded = now
        return self._load

    def weigh(self, weight: float) -> None:
        self.weight, self._loaded = weight, -1.0

    def used_lately(self, now: float) -> float:
        """Seconds of workers' slots that still count."""
        if not self.used or now == self.at:
            return self.used
        left = float(self.used * 0.5 ** ((now - self.at) / HALF_LIFE))
        return left if left > LEAST / 10 else 0.0

    def begin(self, now: float) -> None:
        """An attempt begins on its behalf."""
        self.running += 1
        self._use(LEAST, now)

    def end(self, seconds: float, now: float) -> None:
        """That attempt has ended, or goes on on somebody else's behalf."""
        self.running -= 1
        self._use(max(0.0, seconds - LEAST), now)

    def join(self, others: Collection[Share], now: float) -> None:
        """A new one begins where the others are on average.

        With nothing, each of many small ones would come before one that has been served before.
        """
        if others:
            mean = sum(other.used_lately(now) / other.weight for other in others) / len(others)
            self.used, self.at, self._loaded = mean * self.weight, now, -1.0

    def _use(self, seconds: float, now: float) -> None:
        if now != self.at:
            self.used, self.at = self.used_lately(now), now
        self.used += seconds
        self._loaded = -1.0
