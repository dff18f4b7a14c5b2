"""Removes unused trees from a workspace, for `gc`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from pathlib import Path

from fabric.building.tree import remove
from fabric.building.workspace import Workspace
from fabric.host.shared_files import Tally

_FOLDERS = ("merged", "layers", "failed", "edits")


def remove_unused(
    workspace: Workspace, keep: AbstractSet[str], older_than: float, *, dry_run: bool = False
) -> tuple[Tally, int]:
    """Remove layers, merged trees and failed builds' trees that were unused for so many seconds,
    except for those of the keys in ``keep``.

    While a process builds, trees that any process holds stay.  Return the tally of removed trees,
    or of those that would be removed, and the number of trees that stay for that reason.
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


def remove_layers(workspace: Workspace, keys: Iterable[str], *, dry_run: bool = False) -> Tally:
    """Remove the layers of these steps that no build uses; return the tally of them."""
    tally = Tally()
    for key in keys:
        path = workspace.root / "layers" / key
        with workspace.session.exclusively(key) as unused:
            if unused and path.is_dir():
                aside = path if dry_run else workspace.set_aside(path)
                tally.add(aside)
                if not dry_run:
                    remove(aside)
    return tally


def left_behind(workspace: Workspace) -> Tally:
    """The leftovers of killed processes that no sweep has removed yet."""
    tally = Tally()
    for session in workspace.session.left_over():
        tally.add(session)
    return tally


def _trees(root: Path) -> Iterator[tuple[Path, float]]:
    """All trees, each with the time of its last use."""
    for folder in _FOLDERS:
        for name in os.listdir(root / folder):  # noqa: PTH208
            with suppress(FileNotFoundError):
                yield root / folder / name, os.lstat(root / folder / name).st_atime
