"""Fair shares of the workers, among requesters and among the requests of each.

The *load* of a share is what it uses of the workers now plus what it used lately, divided by its
weight.  The smallest load is served first; of equal loads, the older share.  Past use halves every
`HALF_LIFE`, so a share that gets nothing approaches 0 and is served: nobody starves.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

#: Seconds in which past use halves.
HALF_LIFE = 60.0
#: Seconds of use that each attempt counts as, at least; less than a tenth of it counts as nothing.
LEAST = 1.0
#: Seconds of use that make a load of 1: one slot used all the time.
_FULL = HALF_LIFE / 0.6931471805599453
#: Past use is decayed in steps of so many seconds, so that in between loads change only by what
#: begins and ends, and can be kept in order.
TICK = 0.1


class Share(msgspec.Struct, eq=False):
    """The use that one requester, or one request, makes of the workers."""

    number: int  # breaks ties
    weight: float = 1.0
    running: int = 0
    used: float = 0.0  # seconds of slots, as of ``at``
    at: float = 0.0
    _load: float = 0.0  # as of ``_loaded``
    _loaded: float = -1.0  # in ticks

    def load(self, now: float) -> float:
        """The smaller, the sooner it is served."""
        tick = now // TICK
        if tick != self._loaded:
            self._load = (self.running + self.used_lately(tick * TICK) / _FULL) / self.weight
            self._loaded = tick
        return self._load

    def set_weight(self, weight: float) -> None:
        self.weight, self._loaded = weight, -1.0

    def used_lately(self, now: float) -> float:
        """Seconds of slots that still count."""
        if not self.used or now <= self.at:
            return self.used
        left = float(self.used * 0.5 ** ((now - self.at) / HALF_LIFE))
        return left if left > LEAST / 10 else 0.0

    def begin(self, now: float) -> None:
        """An attempt is billed to this share from now on."""
        self.running += 1
        self._use(LEAST, now)

    def end(self, seconds: float, now: float) -> None:
        """An attempt is billed to this share no longer, after so many seconds."""
        self.running -= 1
        self._use(max(0.0, seconds - LEAST), now)

    def join(self, others: Collection[Share], now: float) -> None:
        """Start a new share at the mean of the others.

        If it started at 0, a series of small requests would always precede a long one.
        """
        if others:
            mean = sum(other.used_lately(now) / other.weight for other in others) / len(others)
            self.used, self.at, self._loaded = mean * self.weight, now, -1.0

    def _use(self, seconds: float, now: float) -> None:
        if now != self.at:
            self.used, self.at = self.used_lately(now), now
        self.used += seconds
        self._loaded = -1.0
