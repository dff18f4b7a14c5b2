"""Writes the log files that a build leaves in the user's current directory.

A file contains the log of one attempt from its first byte; a new attempt replaces it.  Two
initiators never write to the same file: the second one takes the next free name.

Each build records in ``.build-step-logs-*.part`` which of its logs are incomplete, and of which
steps they are.  The writer can therefore be killed at any moment: the next command in that
directory completes the logs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from pathlib import Path

from fabric.bounds import LOG_NOTES
from fabric.errors import FabricError
from fabric.trove.artifacts.store import Store

_BEFORE, _AFTER = ".build-step-logs-", ".part"
#: The notes in a directory, as a pattern.
PART_FILES = f"{_BEFORE}*{_AFTER}"
#: In them, a line for each log that begins (step's key, file name), one when its user was told that
#: it is not whole, and one when it is.  Anybody may have put such a file here, so it names nothing
#: but logs.
_LINE = re.compile(r"([0-9a-f]{64}|told|whole) (build-step-[^/\0]+\.log)")


class _NotStored(FabricError):
    """The store does not have the log of a step."""


class UserLogs:
    """The logs of one build in a directory.  Close it when all of them are closed."""

    def __init__(self, directory: Path) -> None:
        """FabricError if nothing can be written there."""
        self._directory = directory
        try:
            self._part_file = _PartFile.new(directory)
        except OSError as error:
            raise _unwritable(directory, error) from None

    def open(self, name: str, key: str) -> UserLog:
        """Begin the log ``name`` of the step ``key`` anew, or a numbered sister if another build
        writes it.
        """
        try:
            for number in range(1, 1000):
                numbered = name if number == 1 else f"{name.removesuffix('.log')}.{number}.log"
                path = self._directory / numbered
                fd = _lock(path, os.O_CREAT)
                if fd is not None:
                    self._part_file.begun(numbered, key)
                    return UserLog(path, fd, self._part_file)
        except OSError as error:
            raise _unwritable(self._directory / name, error) from None
        raise FabricError(f"{self._directory / name}: a thousand builds write logs here")

    def close(self) -> None:
        """The notes go, unless a log is not whole."""
        self._part_file.close()


class UserLog:
    """One open log file.  Opened by `UserLogs`."""

    def __init__(self, path: Path, fd: int, part_file: _PartFile) -> None:
        self.path = path
        self._fd = fd
        self._part_file = part_file
        self.restart()

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
            with contextlib.suppress(OSError):  # then it is completed once more
                self._part_file.ended(self.path.name)
        os.close(self._fd)


def complete(directory: Path, store: Store) -> list[str]:
    """Fetch what is missing of the logs in ``directory`` whose steps are built by now.

    Returns which logs are not complete still, and why; of those whose build was stopped, each is
    told once.  What a build is writing is left alone.
    """
    left: dict[str, str] = {}
    for file in sorted(directory.glob(PART_FILES)):
        try:
            part_file = _PartFile.left(file)
        except OSError as error:
            left[file.name] = str(_unwritable(file, error))
            continue
        if part_file is None:
            continue
        for name, key in sorted(part_file.partial.items()):
            try:
                if _completed(directory / name, store, key):
                    part_file.ended(name)
            except _NotStored as error:
                if name not in part_file.reported:
                    left[name] = f"{name} is not complete: {error}"
                    with contextlib.suppress(OSError):  # then it is told once more
                        part_file.mark_reported(name)
            except FabricError as error:
                left[name] = f"{name} is not complete: {error}"
            except OSError as error:
                left[name] = str(_unwritable(directory / name, error))
        part_file.close()
    return list(left.values())


def _completed(path: Path, store: Store, key: str) -> bool:
    """Make a log what the store has; False if a build is writing it.  FabricError if there is
    nothing in the store.
    """
    try:
        fd = _lock(path)
    except FileNotFoundError:  # its user did not want it
        return True
    if fd is None:
        return False
    try:
        manifest = store.manifest(key)
        if manifest is None or manifest.log is None:
            raise _NotStored("its build was stopped, or the rest was lost")
        os.ftruncate(fd, 0)
        offset = 0
        for piece in store.stream(manifest.log):
            _write(fd, offset, piece)
            offset += len(piece)
    finally:
        os.close(fd)
    return True


class _PartFile:
    """Which logs of a directory are not whole, in a file that its writer has locked."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.partial: dict[str, str] = {}  # file name -> key of its step
        self.reported: set[str] = set()  # names of those of which the user was told

    @classmethod
    def new(cls, directory: Path) -> _PartFile:
        """For a build that begins: it goes on with those of builds that were killed."""
        while True:
            fd, path = tempfile.mkstemp(_AFTER, _BEFORE, directory)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(path):  # noqa: PTH110
                break
            os.close(fd)  # it was taken for a killed build's, before we had the lock
        part_file = cls(Path(path), fd)
        for file in directory.glob(PART_FILES):
            with contextlib.suppress(OSError):  # `complete` tells of it
                if (older := cls.left(file)) is not None:
                    for name, key in older.partial.items():
                        part_file.begun(name, key)
                        if name in older.reported:
                            part_file.mark_reported(name)
                    older.partial.clear()
                    older.close()
        return part_file

    @classmethod
    def left(cls, path: Path) -> _PartFile | None:
        """Those that a killed build left; None if a build still writes them, or nobody ever did."""
        fd = _lock(path, os.O_APPEND)
        if fd is None:
            return None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LOG_NOTES:
            os.close(fd)
            return None
        part_file = cls(path, fd)
        for line in os.pread(fd, LOG_NOTES, 0).decode(errors="surrogateescape").split("\n")[:-1]:
            if match := _LINE.fullmatch(line):
                part_file._take(match[1], match[2])
        return part_file

    def begun(self, name: str, key: str) -> None:
        """A log begins.  OSError if that cannot be written."""
        self._write(key, name)

    def mark_reported(self, name: str) -> None:
        """Its user knows that it is not whole."""
        self._write("told", name)

    def ended(self, name: str) -> None:
        """It is whole, or unwanted."""
        self._write("whole", name)

    def close(self) -> None:
        """The file goes, unless it is needed still."""
        if not self.partial:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def _write(self, state: str, name: str) -> None:
        os.write(self._fd, f"{state} {name}\n".encode(errors="surrogateescape"))
        self._take(state, name)

    def _take(self, state: str, name: str) -> None:
        if state == "told":
            self.reported.add(name)
            return
        self.reported.discard(name)
        if state == "whole":
            self.partial.pop(name, None)
        else:
            self.partial[name] = state


def _lock(path: Path, flags: int = 0) -> int | None:
    """The file, open and ours; None if it is another's."""
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
    return FabricError(
        f"{path}: cannot write the log there: {error.strerror};"
        " the logs of a build are written to the current folder"
    )
