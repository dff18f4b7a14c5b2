"""Finds what `gc` can remove from a workspace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from pathlib import Path

from fabric.building.tree import remove
from fabric.building.workspace import Workspace
from fabric.host.shared_files import Tally

_FOLDERS = ("merged", "layers", "failed")


def remove_unused(
    workspace: Workspace, keep: AbstractSet[str], older_than: float, *, dry_run: bool = False
) -> tuple[Tally, int]:
    """Remove layers, merged trees and failed builds' trees, unused for so many seconds; but for
    layers of the keys in ``keep``.

    While a process builds, what any process holds stays.  Returns what was removed, or would be,
    and how many trees stay for that reason.
    """
    tally, busy, gone = Tally(), 0, []
    with ExitStack() as held:
        idle = held.enter_context(workspace.idle())
        for path, used in _trees(workspace.root):
            if path.name in keep or used > time.time() - older_than:
                continue
            with ExitStack() as name:
                if not (idle or name.enter_context(workspace.session.exclusively(path.name))):
                    busy += 1
                elif dry_run:
                    gone.append(path)
                else:
                    gone.append(workspace.set_aside(path))
    for path in gone:
        tally.add(path)
        if not dry_run:
            remove(path)
    return tally, busy


def left_behind(workspace: Workspace) -> Tally:
    """What killed workers have left, when nothing has swept it yet."""
    tally = Tally()
    for session in workspace.session.left_over():
        tally.add(session)
    return tally


def _trees(root: Path) -> Iterator[tuple[Path, float]]:
    """All trees, and when each was last used."""
    for folder in _FOLDERS:
        for name in os.listdir(root / folder):  # noqa: PTH208
            with suppress(FileNotFoundError):
                yield root / folder / name, os.lstat(root / folder / name).st_atime
