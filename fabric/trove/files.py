"""Files that several processes share: locks, digests, and making sure of the disk."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK = 1024 * 1024


@contextlib.contextmanager
def locked(
    file: Path, *, shared: bool = False, wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock ``file`` among processes and threads; wait for it as long as it takes.

    ``wait`` is called again and again meanwhile; it takes a moment, and may raise.
    The kernel lets go of the lock when its holder dies.  The file stays and stays empty.
    """
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while wait:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
        else:
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A new directory in ``folder``, for a while.

    It is locked as long as its maker lives; what a killed one left is removed by the next.
    """
    import shutil
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder, fcntl.LOCK_EX):
        for old in folder.glob(f"{prefix}*/"):
            with contextlib.suppress(OSError), _held(old):
                shutil.rmtree(old, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        holding = contextlib.ExitStack()
        holding.enter_context(_held(made))
    with holding:
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _held(directory: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
    """Lock a directory.  BlockingIOError if it is locked and ``how`` does not say to wait."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def sha256_of(file: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Make a directory, with those above it, so that a power cut does not undo it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)
