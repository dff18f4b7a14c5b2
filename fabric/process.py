"""Ties between processes that the standard library does not have."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """End (by SIGTERM) when the process ``parent``, which started this one, has ended.

    The kernel sees to it, so it works however the parent ends.  It means the parent's thread:
    start children from a thread that lives as long as they should.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        raise SystemExit(0)
