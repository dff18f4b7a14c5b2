"""Ties between processes that the standard library does not have."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def die_with_parent(parent: int) -> None:
    """End (by SIGTERM) when the process ``parent``, which started this one, has ended.

    The kernel sees to it, so it works however the parent ends.  It means the parent's thread:
    start children from a thread that lives as long as they should.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        raise SystemExit(0)


def keep_memory(size: int) -> None:
    """Give memory back to the kernel only when more than ``size`` bytes of it are free.

    glibc would do so for each message that carries a piece of a log, and the kernel clears every
    page that comes back: most of what it costs to pass logs on.  Other libraries do as they like.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, size)
        mallopt(_M_MMAP_THRESHOLD, size)
