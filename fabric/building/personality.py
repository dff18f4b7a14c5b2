"""Makes a thread and its children see a machine of another architecture."""

from __future__ import annotations

import os
import platform
from pathlib import Path

#: (machine, architecture) -> Linux's number of the personality; others need none.
_LINUX32 = 0x0008
_PERSONALITIES = {("x86_64", "x86_32"): _LINUX32}


def take(architecture: str) -> None:
    """Set the architecture that programs started by this thread see, as `setarch` does.

    OSError if the kernel does not allow it.
    """
    try:
        become(_PERSONALITIES.get((platform.machine(), architecture), 0))
    except OSError as error:
        why = f"{error.strerror}: no {architecture} programs run here"
        raise OSError(error.errno, why) from None


def become(wanted: int) -> None:
    """Set the personality of this thread.  OSError if the kernel does not allow it."""
    if wanted == taken():
        return
    import ctypes  # rarely needed

    if ctypes.CDLL(None, use_errno=True).personality(wanted) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def is_other(architecture: str) -> bool:
    """Whether programs of an architecture need another personality than this machine's own."""
    return (platform.machine(), architecture) in _PERSONALITIES


def taken() -> int:
    """The personality of this thread."""
    with Path("/proc/thread-self/personality").open() as file:
        return int(file.read(), 16)
