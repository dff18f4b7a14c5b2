"""Defines how pages ask the broker, and the errors of addresses."""

from __future__ import annotations

from typing import Any, Protocol

from fabric.errors import FabricError
from fabric.wire.messages import Answer


class NotFound(FabricError):
    """What an address names does not exist."""


class BadAddress(FabricError):
    """The query of an address has a mistake."""


class Asks(Protocol):
    """What pages need of `fabric.web.farm.Farm`."""

    @property
    def error(self) -> str:
        """Why the broker is silent; "" if it answers."""

    async def query(self, what: Any, about: str = "", seen: int = 0) -> Answer: ...
