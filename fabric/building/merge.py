"""Merges several trees into one by hard links."""

# Paths here are bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH108
from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from fabric.building.tree import Opener, remove


class Merger:
    """Lays trees into the empty directory ``into``, a later one over the earlier.

    As in overlayfs, directories merge, and a later entry of any other type hides the earlier one.
    The trees must not change afterwards, since the merged tree shares their files.
    """

    def __init__(self, into: Path) -> None:
        self._top = os.fsencode(into)
        self._modes: dict[bytes, int] = {self._top: 0o755}

    def lay(
        self, source: Path, at: bytes = b"", moves: Mapping[bytes, bytes] | None = None
    ) -> None:
        """Lay ``source`` at the path ``at``; ``moves`` gives other paths for some directories."""
        moves = moves or {}
        start = self._top
        for part in filter(None, at.split(b"/")):
            start += b"/" + part
            self._directory(start, 0o755)
        pending = [(os.fsencode(source), b"", start)]
        with Opener() as opener:
            while pending:
                directory, path, target = pending.pop()
                for item in opener.listing(directory):
                    inner = path + b"/" + item.name if path else item.name
                    goal = target + b"/" + item.name
                    if item.is_dir(follow_symlinks=False):
                        if inner in moves:
                            goal = self._parents(moves[inner])
                        self._directory(goal, item.stat(follow_symlinks=False).st_mode)
                        pending.append((item.path, inner, goal))
                    else:
                        self._link(item.path, goal)

    def finish(self, mtime: float) -> None:
        """Set the modes of the directories, and one mtime for all of them."""
        for path in sorted(self._modes, reverse=True):
            os.utime(path, (mtime, mtime))
            os.chmod(path, stat.S_IMODE(self._modes[path]))

    def _parents(self, path: bytes) -> bytes:
        here = self._top
        for part in path.split(b"/"):
            here += b"/" + part
            if here not in self._modes:
                self._directory(here, 0o755)
        return here

    def _directory(self, path: bytes, mode: int) -> None:
        if path not in self._modes:
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                os.unlink(path)
                os.mkdir(path, 0o700)
        self._modes[path] = mode

    def _link(self, source: bytes, path: bytes) -> None:
        try:
            os.link(source, path, follow_symlinks=False)
        except FileExistsError:
            if path in self._modes:
                self._hide(path)
            else:
                os.unlink(path)
            os.link(source, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK):
                raise
            shutil.copy2(source, path, follow_symlinks=False)

    def _hide(self, path: bytes) -> None:
        remove(Path(os.fsdecode(path)))
        inside = path + b"/"
        self._modes = {
            known: mode
            for known, mode in self._modes.items()
            if known != path and not known.startswith(inside)
        }
