"""Measures free disk space and memory shortage, and sorts trees by their last use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

#: With fewer bytes free than this, any failure may be caused by the disk.
_FULL = 16 << 20
#: Seconds after which a tree with a hidden name is no longer being made or removed.
_ABANDONED = 3600.0


def free(path: Path) -> int:
    """Bytes free on the disk of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def full(path: Path) -> bool:
    """Whether the disk of ``path`` has hardly any space left, or no inodes."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize < _FULL or (info.f_files > 0 and not info.f_favail)


def oom_kills() -> int:
    """The number of processes that the kernel has killed since boot for lack of memory."""
    fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, _, rest = os.read(fd, 1 << 16).partition(b"\noom_kill ")
    finally:
        os.close(fd)
    return int(rest.partition(b"\n")[0] or b"0")


def mark_used(path: Path) -> bool:
    """Record that a tree is used now; False if it does not exist.

    Its atime records that, since builds see its mtime.
    """
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def by_age(folders: Iterable[Path], used: Mapping[str, float] = MappingProxyType({})) -> list[Path]:
    """The contents of the folders, least recently used first.

    ``used`` has the time of the last use of some names; for others it is their atime.
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
