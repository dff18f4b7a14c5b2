"""Lets commands clean up when a signal ends them."""

from __future__ import annotations

import signal


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
