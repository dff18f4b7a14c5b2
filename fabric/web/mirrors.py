"""Keeps the steps of requests that somebody looks at, and asks only for their changes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

import msgspec

from fabric import bounds
from fabric.web.asks import Asks, NotFound
from fabric.wire.messages import StepState, Update


class KnownStep(msgspec.Struct, frozen=True):
    """A step, and when the broker described it so: its times count from then."""

    state: StepState
    at: datetime

    @property
    def began(self) -> datetime | None:
        """When its attempt began; None if it does not run."""
        if self.state.state != "running":
            return None
        return self.at - timedelta(seconds=self.state.running_for)


class Mirror:
    """A request as the broker last described it."""

    def __init__(self, update: Update, at: datetime) -> None:
        self.update = update
        self.title = update.title
        self.goals = update.goals
        self.at = at
        self.steps: dict[str, KnownStep] = {}
        self.apply(update, at)

    def apply(self, update: Update, at: datetime) -> None:
        """Take over the changes since the version before."""
        if update.goals:  # the request was just resolved, or all of it was asked for
            self.steps.clear()
        self.title = update.title or self.title
        self.goals = update.goals or self.goals
        for step in update.steps:
            self.steps[step.key] = KnownStep(step, at)
        self.update, self.at = update, at


class Mirrors:
    """The mirrors of the requests that were looked at last."""

    def __init__(self, farm: Asks) -> None:
        self._farm = farm
        self._known: OrderedDict[str, Mirror] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, request: str) -> Mirror:
        """The request as it is now.  NotFound if there is none, else errors as `Farm.query`."""
        lock = self._locks.setdefault(request, asyncio.Lock())
        try:
            async with lock:
                return await self._refresh(request)
        finally:
            if not lock.locked():
                self._locks.pop(request, None)

    async def _refresh(self, request: str) -> Mirror:
        mirror = self._known.get(request)
        seen = mirror.update.version if mirror else 0
        update = await self._ask(request, seen)
        if mirror is not None and update.version < seen:  # of another run of the broker
            mirror = None
            update = await self._ask(request, 0)
        now = datetime.now(UTC)
        if mirror is None:
            mirror = self._known[request] = Mirror(update, now)
        else:
            mirror.apply(update, now)
        self._known.move_to_end(request)
        self._forget()
        return mirror

    async def _ask(self, request: str, seen: int) -> Update:
        update = (await self._farm.query("update", request, seen)).update
        if update is None:
            self._known.pop(request, None)
            raise NotFound(f"{request}: no such build; it may have ended long ago")
        return update

    def _forget(self) -> None:
        """Forget the requests looked at longest ago."""
        steps = sum(len(mirror.steps) for mirror in self._known.values())
        while len(self._known) > 1 and steps > bounds.WEB_STEPS:
            _, oldest = self._known.popitem(last=False)
            steps -= len(oldest.steps)
