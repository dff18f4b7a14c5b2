"""Provides scratch directories, digests, sizes and fsync of files that processes share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fabric.host.files import walk
from fabric.host.locks import locked, no_wait

CHUNK = 1024 * 1024


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A new directory in ``folder``, removed at the end.

    It is locked while its process lives.  The next `scratch` of that prefix, or `sweep`, removes
    those of killed processes.
    """
    import shutil
    import tempfile

    with contextlib.ExitStack() as held:
        with locked(folder / "scratch-lock"):
            _sweep(folder, prefix)
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
            held.enter_context(locked(made / "lock"))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def sweep(folder: Path, prefix: str) -> None:
    """Remove the scratch directories of killed processes."""
    if any(folder.glob(f"{prefix}*")):
        with locked(folder / "scratch-lock"):
            _sweep(folder, prefix)


def _sweep(folder: Path, prefix: str) -> None:
    import shutil

    for old in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), locked(old / "lock", wait=no_wait):
            shutil.rmtree(old, ignore_errors=True)


class Tally:
    """Counts the bytes freed by removing trees one after the other.

    A file with several names frees its bytes with the last of them.
    """

    def __init__(self) -> None:
        self.trees = 0
        self.bytes = 0
        self._names: Counter[tuple[int, int]] = Counter()  # inode -> names removed so far

    def add(self, path: Path | str) -> None:
        """Count a tree or a file that is to be removed."""
        self.trees += 1
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                self._add(status)
                return
            for folder, name, is_folder in walk(path):
                with contextlib.suppress(FileNotFoundError):
                    if not is_folder:
                        self._add(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def _add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            id = (status.st_dev, status.st_ino)
            self._names[id] += 1
            if self._names[id] < status.st_nlink:
                return
        self.bytes += status.st_size


def sha256_of(file: Path | str) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fsync(path: Path | str) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path | str) -> None:
    """Make a directory and its parents durably: each is synced in its parent."""
    if os.path.isdir(path):  # noqa: PTH112
        return
    path = Path(path)
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)
