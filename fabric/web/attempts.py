"""Keeps the attempts of the builds that were looked at last, and asks only for later ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import Struct

from fabric import bounds
from fabric.web.asks import Asks
from fabric.web.kept import Kept
from fabric.wire.messages import AttemptInfo

#: Seconds by which a build may seem to be submitted after its first attempt began.
SOON = 1.0


class Try(Struct, frozen=True, gc=False):
    """An attempt with its times, in seconds since the epoch of its `Attempts`."""

    began: float
    ended: float  # if it runs, when it was described
    info: AttemptInfo


class Known:
    """The attempts of a build.

    Times are fixed when an attempt is first seen: they do not vary with the time that answers take.
    """

    def __init__(self) -> None:
        #: when the build was submitted, if a page has told it
        self.base: float | None = None
        self.ended: list[Try] = []
        self.running: list[Try] = []
        self.seen = 0  # number of the last that has ended
        self._began: dict[tuple[str, int], float] = {}  # of those that run

    def add(self, infos: tuple[AttemptInfo, ...], now: float) -> int:
        """Takes an answer; returns how many of it have ended."""
        found = []
        running = []
        began = {}
        for info in infos:
            id = info.key, info.fence
            at = self._began.get(id, now - info.ago)
            one = Try(at, max(at, at + info.seconds), info)
            if info.number:
                found.append(one)
                self.seen = max(self.seen, info.number)
            else:
                running.append(one)
                began[id] = at
        self.ended += found
        if running or not found:
            self.running, self._began = running, began
        else:
            ended = {(one.info.key, one.info.fence) for one in found}
            self.running = [
                one for one in self.running if (one.info.key, one.info.fence) not in ended
            ]
        return len(found)


class Attempts:
    """The attempts of builds; times count from ``epoch`` on."""

    def __init__(self, farm: Asks, clock: Callable[[], float] = time.monotonic) -> None:
        self._farm = farm
        self._start = clock()
        self._clock = clock
        self.epoch = datetime.now(UTC)
        self._known: Kept[str, Known] = Kept(lambda known: len(known.ended))

    @property
    def now(self) -> float:
        """Seconds since ``epoch``."""
        return self._clock() - self._start

    async def get(self, about: str, submitted: float | None = None) -> Known:
        """The attempts of a request, submitted then, as they are now; or as `Query.about` says.

        Errors as `Asks.query`.
        """
        async with self._known.turn(about) as found:
            known = found or Known()
            count = bounds.ATTEMPTS_SHOWN
            while count >= bounds.ATTEMPTS_SHOWN:
                answer = await self._farm.query("attempts", about, known.seen)
                count = known.add(answer.attempts, self.now - answer.age)
            if known.base is None and submitted is not None:
                first = min((one.began for one in known.ended + known.running), default=submitted)
                known.base = first if submitted - SOON < first < submitted else submitted
            del known.ended[: -bounds.WEB_ATTEMPTS]
            self._known.keep(about, known, bounds.WEB_ATTEMPTS)
            return known
