"""Makes a thread and its children see a machine of another architecture."""

from __future__ import annotations

import os
import platform
from pathlib import Path

#: (machine, architecture) -> what Linux calls the personality; what is not here needs none.
_LINUX32 = 0x0008
_PERSONALITIES = {("x86_64", "x86_32"): _LINUX32}


def take(architecture: str) -> None:
    """Have programs that this thread starts see a machine of that kind, as `setarch` does.

    OSError if the kernel does not allow it.
    """
    wanted = _PERSONALITIES.get((platform.machine(), architecture), 0)
    if wanted == _taken():
        return
    import ctypes  # hardly ever needed

    if ctypes.CDLL(None, use_errno=True).personality(wanted) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)}: no {architecture} programs run here")


def _taken() -> int:
    """The personality of this thread."""
    with Path("/proc/thread-self/personality").open() as file:
        return int(file.read(), 16)
