"""Measures free disk space, and sorts trees by their last use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

#: With less room left than this, in bytes, whatever happens may be the disk's doing.
_FULL = 16 << 20
#: Seconds after which what has a hidden name is no longer being made, or being removed.
_ABANDONED = 3600.0


def free(path: Path) -> int:
    """Bytes free on the disk of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def full(path: Path) -> bool:
    """Whether the disk of ``path`` has hardly any room left, or no inodes."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize < _FULL or (info.f_files > 0 and not info.f_favail)


def oom_kills() -> int:
    """How many processes the kernel has ended since it started because it had no memory left."""
    fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, _, rest = os.read(fd, 1 << 16).partition(b"\noom_kill ")
    finally:
        os.close(fd)
    return int(rest.partition(b"\n")[0] or b"0")


def mark_used(path: Path) -> bool:
    """Note that a tree is of use now; False if it is not there.

    The time of access notes it, since the time of change is seen by builds.
    """
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def by_age(folders: Iterable[Path], used: Mapping[str, float] = MappingProxyType({})) -> list[Path]:
    """All that is in the folders, what was used longest ago first.

    ``used`` says of some names when that was; of the others, `mark_used` has noted it.
    """
    found = []
    for folder in folders:
        with suppress(FileNotFoundError):
            for name in os.listdir(folder):  # noqa: PTH208
                with suppress(FileNotFoundError):
                    when = os.lstat(folder / name).st_atime
                    if not name.startswith(".") or when < time.time() - _ABANDONED:
                        found.append((used.get(name, when), folder / name))
    return [path for _, path in sorted(found)]
