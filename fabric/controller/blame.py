"""Finds the requests that the core was processing when it raised, so that only they fail."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import FrameType

from fabric.scheduling.model import Request, Task
from fabric.wire.messages import BuildGraph, BuildOrder, cut


def fault_text(error: Exception) -> str:
    """The error text for users."""
    return cut(f"internal error of the controller: {type(error).__name__}: {error}")


def requests_in_traceback(error: Exception) -> dict[str, BuildOrder | BuildGraph | None]:
    """Ids of the requests in the innermost frame that has any.

    Each comes with its message, if the core was handling that.  Empty if the error did not arise in
    the core, or is the machine's (OSError, MemoryError).
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, OSError | MemoryError) or not any(map(_in_core, frames)):
        return {}
    for frame in reversed(frames):
        if ids := list(_ids(frame)):
            intents = {
                value.request: value
                for each in frames
                for value in each.f_locals.values()
                if isinstance(value, BuildOrder | BuildGraph)
            }
            return {id: intents.get(id) for id in ids}
    return {}


def _in_core(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("fabric.scheduling.")


def _ids(frame: FrameType) -> Iterator[str]:
    """The request among a function's variables; else those of its task, message or event."""
    values = list(frame.f_locals.values())
    for value in values:
        if isinstance(value, Request):
            yield value.id
            return
    for value in values:
        if isinstance(value, Task):
            yield from value.requests
        elif isinstance(id := getattr(value, "request", None), str):  # a message, or an event
            yield id
