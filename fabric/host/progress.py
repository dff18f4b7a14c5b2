"""Defines how work reports its progress: a line of text at a time, from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """Progress that nobody reads."""


class Throttle:
    """Passes on the first message, and later ones once in ``every`` seconds."""

    def __init__(self, progress: Progress, every: float = 2.0) -> None:
        self._progress = progress
        self._every = every
        self._next = 0.0

    def __call__(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every
            self._progress(message)
