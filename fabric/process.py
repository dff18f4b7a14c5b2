"""Ties between processes that the standard library does not have."""

from __future__ import annotations

import ctypes
import os
import signal

from fabric.errors import FabricError

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Get SIGTERM when our parent process ends, however it ends.

    FabricError if ``parent``, the process id it has, is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise FabricError(f"cannot watch the parent process: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before we asked
        raise FabricError(f"the parent process {parent} is gone")
