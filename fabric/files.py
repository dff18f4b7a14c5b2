"""Reading files that others wrote."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """What an ordinary file of at most ``limit`` bytes holds.

    OSError, with ``strerror`` for the user, for one that is larger, or is a pipe, a device or
    anything else that may never end; unless ``follow``, for a symbolic link, too.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return data


def real(path: Path) -> Path:
    """Where a path leads, be there anything or not; a link to itself leads to itself.

    Unlike `Path.resolve`, which raises RuntimeError for the latter before Python 3.13.
    """
    return Path(os.path.realpath(path))
