"""Frees large containers a piece at a time: freeing one at once would hold up every peer."""

from __future__ import annotations

from typing import Any

from fabric.scheduling.state import FarmState

#: Items freed at a time.
MANY = 500
#: Seconds between such times.
PAUSE = 0.005


def discard(state: FarmState, *containers: dict[str, Any] | list[Any]) -> None:
    """Free all that is in these, with time."""
    sweeping = bool(state.discarded)
    state.discarded.extend(each for each in containers if len(each) > MANY)
    if state.discarded and not sweeping:
        state.timers.start(state.now + PAUSE, sweep)


def sweep(state: FarmState, _: object) -> None:
    container = state.discarded[-1]
    if isinstance(container, list):
        del container[-MANY:]
    else:
        for _ in range(min(MANY, len(container))):
            container.popitem()
    if not container:
        state.discarded.pop()
    if state.discarded:
        state.timers.start(state.now + PAUSE, sweep)
