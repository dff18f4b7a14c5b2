"""Writes the log files that a build leaves in the user's current directory.

A file contains the log of one attempt from its first byte; a new attempt replaces it.  Two
initiators never write to the same file: the second one takes the next free name.

Each build records in a file ``.build-step-logs-*.part`` which of its logs are incomplete, and the
keys of their steps.  The initiator can therefore be killed at any moment: the next command in that
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

from fabric.bounds import LOG_LIST
from fabric.errors import FabricError
from fabric.trove.artifacts.store import Store

_BEFORE, _AFTER = ".build-step-logs-", ".part"
#: Pattern of the part files in a directory.
PART_FILES = f"{_BEFORE}*{_AFTER}"
#: A line of a part file: a log has begun (key of its step), was reported as incomplete, or is
#: complete.  The file may be forged, so it can name only logs.
_LINE = re.compile(r"([0-9a-f]{64}|told|whole) (build-step-[^/\0]+\.log)")


class _NotStored(FabricError):
    """The store does not have the log of a step."""


class UserLogs:
    """The logs of one build in a directory.  Close it after all of them."""

    def __init__(self, directory: Path) -> None:
        """FabricError if the directory cannot be written."""
        self._directory = directory
        try:
            self._part_file = _PartFile.new(directory)
        except OSError as error:
            raise _unwritable(directory, error) from None

    def open(self, name: str, key: str) -> UserLog:
        """Open the empty log ``name`` of the step ``key``; FabricError if that is not possible.

        If another build writes that file, a numbered one is opened.
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
        raise FabricError(f"{self._directory / name}: 999 other builds write such a log here")

    def close(self) -> None:
        """Remove the part file, unless a log is incomplete."""
        self._part_file.close()


class UserLog:
    """One open log file, made by `UserLogs.open`."""

    def __init__(self, path: Path, fd: int, part_file: _PartFile) -> None:
        self.path = path
        self._fd = fd
        self._part_file = part_file
        self.restart()

    def restart(self) -> None:
        """Empty the file, for another attempt."""
        if os.fstat(self._fd).st_size:  # ext4 flushes a file that was truncated when it is closed
            os.ftruncate(self._fd, 0)
        self.size = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``.  FabricError if that is not possible."""
        try:
            _write(self._fd, offset, data)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.size = max(self.size, offset + len(data))

    def tail(self, lines: int = 20, most: int = 16 * 1024) -> list[str]:
        """The last ``lines`` lines, from the last ``most`` bytes."""
        start = max(0, self.size - most)
        text = os.pread(self._fd, self.size - start, start).decode(errors="replace")
        return text.splitlines()[-lines:]

    def close(self, *, whole: bool) -> None:
        """Close the file.  ``whole``: it is complete."""
        if whole:
            with contextlib.suppress(OSError):  # it is completed once more then
                self._part_file.ended(self.path.name)
        os.close(self._fd)


def complete(directory: Path, store: Store) -> list[str]:
    """Complete the logs in ``directory`` whose steps are in the store by now.

    Returns a text for each log that stays incomplete; a log whose build was stopped is reported
    once.  Logs that a build writes are left alone.
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
                    with contextlib.suppress(OSError):  # it is reported once more then
                        part_file.mark_reported(name)
            except FabricError as error:
                left[name] = f"{name} is not complete: {error}"
            except OSError as error:
                left[name] = str(_unwritable(directory / name, error))
        part_file.close()
    return list(left.values())


def _completed(path: Path, store: Store, key: str) -> bool:
    """Replace a log by that in the store; False if a build writes it.

    _NotStored if the store has no log of the step.
    """
    try:
        fd = _lock(path)
    except FileNotFoundError:  # the user removed it
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
    """The record of incomplete logs in a directory: a file that its writer locks."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.partial: dict[str, str] = {}  # file name -> key of its step
        self.reported: set[str] = set()  # names of reported logs

    @classmethod
    def new(cls, directory: Path) -> _PartFile:
        """A part file for a new build, which takes over the incomplete logs of killed builds."""
        while True:
            fd, path = tempfile.mkstemp(_AFTER, _BEFORE, directory)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(path):  # noqa: PTH110
                break
            os.close(fd)  # another process took it for that of a killed build, before it was locked
        part_file = cls(Path(path), fd)
        for file in directory.glob(PART_FILES):
            with contextlib.suppress(OSError):  # `complete` reports it
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
        """The part file of a killed build; None if a build still writes it, or it is not one."""
        fd = _lock(path, os.O_APPEND)
        if fd is None:
            return None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LOG_LIST:
            os.close(fd)
            return None
        part_file = cls(path, fd)
        for line in os.pread(fd, LOG_LIST, 0).decode(errors="surrogateescape").split("\n")[:-1]:
            if match := _LINE.fullmatch(line):
                part_file._take(match[1], match[2])
        return part_file

    def begun(self, name: str, key: str) -> None:
        """Record that a log begins.  OSError if that cannot be written."""
        self._write(key, name)

    def mark_reported(self, name: str) -> None:
        """Record that a log was reported as incomplete."""
        self._write("told", name)

    def ended(self, name: str) -> None:
        """Record that a log is complete, or was removed."""
        self._write("whole", name)

    def close(self) -> None:
        """Close the file, and remove it if no log is incomplete."""
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
    """Open and lock a file; None if another process has locked it."""
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
