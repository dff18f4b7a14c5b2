"""Waits for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60.0, what: str = "") -> T:
    """Wait until ``condition()`` is true; returns its value.  AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < deadline, f"waited in vain {what}"
        # the condition may start a program: leave as much time to what the test waits for
        time.sleep(min(max(0.005, now - began), 0.25))
