"""Checks a job's cancel event while something waits or works for long."""

from __future__ import annotations

import threading

from fabric.errors import Cancelled

#: Seconds between two looks while waiting,
TICK = 0.1
#: and between the first two, where it may not take long.
SOON = 0.001


def never() -> None:
    """A check of what nobody can end: it never raises."""


def stop_if(cancelled: threading.Event) -> None:
    """Raise Cancelled if the job is."""
    if cancelled.is_set():
        raise Cancelled("Cancelled")
