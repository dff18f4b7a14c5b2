"""Defines how work reports its progress: a line of text at a time, from any thread."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

Progress = Callable[[str], None]
#: A share in a text: "1.2 of 4.0 MB", "45%".
SHARE = re.compile(r"\b(\d+(?:\.\d+)?) of (\d+(?:\.\d+)?)\b|\b(\d{1,3})%")
#: Called with the bytes that have come, and the bytes that are to come in all.
Moved = Callable[[int, int], None]


def silent(text: str) -> None:
    """Discard the text."""


def unmoved(done: int, total: int) -> None:
    """Discard the numbers."""


def in_phase(phase: str, report: Progress) -> Moved:
    """Reports moved bytes after the name of a phase: "fetch 1.2 of 4.0 MB"."""
    return lambda done, total: report(f"{phase} {done / 1e6:.1f} of {total / 1e6:.1f} MB")


def share_of(text: str) -> float | None:
    """The share that is done, by a text such as "downloading 1.2 of 4.0 MB" or "45%"."""
    found = SHARE.search(text)
    if found is None:
        return None
    done, total, percent = found.groups()
    if percent is not None:
        return float(percent) / 100
    return float(done) / float(total) if float(total) else None


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
