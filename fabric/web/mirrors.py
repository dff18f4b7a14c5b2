"""Keeps the steps of requests that somebody looks at, and asks only for their changes."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from fabric import bounds
from fabric.web.asks import Asks, NotFound
from fabric.web.kept import Kept
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
        self._known: Kept[str, Mirror] = Kept(lambda mirror: len(mirror.steps))

    async def get(self, request: str) -> Mirror:
        """The request as it is now.  NotFound if there is none, else errors as `Farm.query`."""
        async with self._known.turn(request) as mirror:
            seen = mirror.update.version if mirror else 0
            update, at = await self._ask(request, seen)
            if mirror is not None and update.version < seen:  # of another run of the broker
                mirror = None
                update, at = await self._ask(request, 0)
            if mirror is None:
                mirror = Mirror(update, at)
            else:
                mirror.apply(update, at)
            self._known.keep(request, mirror, bounds.WEB_STEPS)
            return mirror

    async def _ask(self, request: str, seen: int) -> tuple[Update, datetime]:
        answer = await self._farm.query("update", request, seen)
        if answer.update is None:
            self._known.forget(request)
            raise NotFound(f"{request}: no such build; it may have ended long ago")
        return answer.update, answer.at
