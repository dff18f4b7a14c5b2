"""Defines how pages ask the broker, and the errors of addresses."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from fabric.errors import FabricError
from fabric.wire.messages import Answer


class NotFound(FabricError):
    """What an address names does not exist."""


class BadAddress(FabricError):
    """The query of an address has a mistake."""


class Heard(Answer, frozen=True):
    """An answer of the broker that may be used for a while: its times count from ``heard`` on."""

    asked: float = msgspec.field(default_factory=time.monotonic)
    heard: float = msgspec.field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since it was heard."""
        return time.monotonic() - self.heard

    @property
    def at(self) -> datetime:
        """When it was heard."""
        return datetime.now(UTC) - timedelta(seconds=self.age)


class Asks(Protocol):
    """What pages need of `fabric.web.farm.Farm`."""

    @property
    def error(self) -> str:
        """Why the broker is silent; "" if it answers."""

    async def query(self, what: Any, about: str = "", seen: int = 0) -> Heard: ...
