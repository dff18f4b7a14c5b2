"""The log files that a build leaves in the user's current directory.

A file is the log of one attempt from its first byte on; a new attempt begins it anew.  Two
initiators in one directory do not write into one file: the second takes the next free name.

As long as a log is not whole, a mark stands beside it: ``.NAME.part``, which holds its step's key.
So its writer may be killed at any moment: the next command there completes what it left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from fabric.errors import FabricError
from fabric.trove.store import Store

_BEFORE, _AFTER = ".", ".part"
#: The marks of a directory, as a pattern.
MARKS = f"{_BEFORE}build-step-*.log{_AFTER}"


class UserLog:
    """One open log file."""

    def __init__(self, directory: Path, name: str, key: str) -> None:
        """Opens ``directory/name`` anew, or a numbered sister if another build writes it."""
        for number in range(1, 1000):
            path = directory / (
                name if number == 1 else f"{name.removesuffix('.log')}.{number}.log"
            )
            mark = _mark(path)
            try:
                fd = _lock(path, os.O_CREAT)
                if fd is None:
                    continue
                with open(mark, "wb", buffering=0) as file:  # noqa: PTH123
                    file.write(key.encode())
            except OSError as error:
                raise _unwritable(path, error) from None
            self.path = path
            self._mark = mark
            self._fd = fd
            self.restart()
            return
        raise FabricError(f"{directory / name}: a thousand builds write logs here")

    def restart(self) -> None:
        """Begin anew: another attempt."""
        if os.fstat(self._fd).st_size:  # ext4 flushes what was ever truncated when it is closed
            os.ftruncate(self._fd, 0)
        self.size = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """``data``, which belongs at ``offset``."""
        try:
            _write(self._fd, offset, data)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.size = max(self.size, offset + len(data))

    def tail(self, lines: int = 20, most: int = 16 * 1024) -> list[str]:
        """Its last lines."""
        start = max(0, self.size - most)
        text = os.pread(self._fd, self.size - start, start).decode(errors="replace")
        return text.splitlines()[-lines:]

    def close(self, *, whole: bool) -> None:
        """Write no more.  ``whole``: nothing is missing."""
        if whole:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._mark)  # noqa: PTH108
        os.close(self._fd)


def complete(directory: Path, store: Store) -> list[str]:
    """Fetch what is missing of the logs in ``directory`` whose steps are built by now.

    Returns which logs are not complete still, and why.  One that a build is writing is left alone.
    """
    left = []
    for mark in sorted(directory.glob(MARKS)):
        path = mark.with_name(mark.name.removeprefix(_BEFORE).removesuffix(_AFTER))
        try:
            fd = _lock(path)
        except FileNotFoundError:  # its user did not want it
            mark.unlink(missing_ok=True)
            continue
        except OSError as error:
            left.append(str(_unwritable(path, error)))
            continue
        if fd is None:
            continue
        try:
            _refill(fd, store, mark.read_text())
            mark.unlink()
        except FabricError as error:
            left.append(f"{path.name} is not complete: {error}")
        except OSError as error:
            left.append(str(_unwritable(path, error)))
        finally:
            os.close(fd)
    return left


def _refill(fd: int, store: Store, key: str) -> None:
    """Make the log what the store has.  FabricError if it has none."""
    manifest = store.manifest(key) if key.isalnum() else None
    if manifest is None or manifest.log is None:
        raise FabricError("its build was stopped, or the rest was lost")
    os.ftruncate(fd, 0)
    offset = 0
    for piece in store.stream(manifest.log):
        _write(fd, offset, piece)
        offset += len(piece)


def _mark(log: Path) -> str:
    return f"{log.parent}/{_BEFORE}{log.name}{_AFTER}"


def _lock(path: Path, flags: int = 0) -> int | None:
    """The log, open and ours; None if it is another's."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _write(fd: int, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _unwritable(path: Path, error: OSError) -> FabricError:
    return FabricError(f"{path}: cannot write the log there: {error.strerror}")
