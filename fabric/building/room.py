"""How much room a disk has, and what has been of no use for longest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

#: Seconds after which what has a hidden name is no longer being made, or being removed.
_ABANDONED = 3600.0


def free(path: Path) -> int:
    """Bytes free on the disk of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def use(path: Path) -> bool:
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

    ``used`` says of some names when that was; of the others, `use` has noted it.
    """
    found = []
    for folder in folders:
        with suppress(FileNotFoundError):
            for item in os.scandir(folder):
                with suppress(FileNotFoundError):
                    when = item.stat(follow_symlinks=False).st_atime
                    if not item.name.startswith(".") or when < time.time() - _ABANDONED:
                        found.append((used.get(item.name, when), folder / item.name))
    return [path for _, path in sorted(found)]
