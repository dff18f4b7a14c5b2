"""Defines the spool of one log at the broker, and the disk quota that all spools share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator

import msgspec

from fabric import bounds

#: Bytes that are written between two checks of the free disk space.
LOOK_EVERY = 16 * bounds.MIB
#: Bytes of a log from a former run that are digested in one turn: some milliseconds.
DIGESTED_AT_ONCE = 4 * bounds.MIB

#: The digest of an empty log.
EMPTY = hashlib.sha256().hexdigest()
NAME = re.compile(r"([0-9a-f]{64})\.([0-9]{1,19})\Z")


class Spool(msgspec.Struct, eq=False, gc=False):
    """The beginning of the log of one attempt, without gaps."""

    key: str
    fence: int
    worker: str
    have: int = 0  # bytes of the beginning
    short: bytes | None = b""  # the beginning itself; None: it is in the file
    filed: int = 0  # bytes of the file, the last of which may be from before a restart
    known: int = 0  # bytes that exist at the worker, as far as known
    size: int = -1  # of the complete log; -1: unknown
    sha256: str = ""
    ended: float | None = None  # when the attempt ended
    reached: int = 0  # bytes when it ended, or when it last grew after that
    moved: float = float("-inf")  # when that was
    whole: bool = False  # size and digest are correct
    broken: str = ""  # why it is not stored
    restarted: bool = False  # read again because the digest was wrong; happens once
    asked: float = float("-inf")  # when a range was requested last
    digest: hashlib._Hash | None = None  # of the beginning; None: of nothing
    digested: int = 0  # bytes in ``digest``; fewer than ``have`` in a log of a former run

    @property
    def behind(self) -> bool:
        """Whether the digest lacks bytes of the beginning."""
        return self.digested < self.have

    def received(self, data: bytes | memoryview) -> None:
        """Note that ``data`` was appended."""
        if not self.behind:
            self.update_digest(data)
        self.have += len(data)

    def update_digest(self, data: bytes | memoryview) -> None:
        """Add the next bytes to the digest."""
        if self.digest is None:
            self.digest = hashlib.sha256()
        self.digest.update(data)
        self.digested += len(data)

    def restart(self) -> None:
        """Begin again with an empty log."""
        self.known = max(self.known, self.have)
        self.have = self.digested = 0
        self.digest = None

    def is_correct(self) -> bool:
        """Whether the log is complete and its digest correct."""
        found = EMPTY if self.digest is None else self.digest.hexdigest()
        return self.have == self.size and found == self.sha256

    @property
    def lacks(self) -> bool:
        return (self.have < self.size or self.have < self.known) and not self.broken


def found_size(path: str) -> int:
    """Bytes of the log file of a former run; 0 if there is none."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return 0


class LogDisk:
    """Counts the bytes of log files against their quota and the free disk space.

    Logs leave `bounds.LOGS_SPARE` bytes of the disk, or a tenth of it, to the journal.
    """

    def __init__(self, directory: str, quota: int = bounds.LOGS_DISK) -> None:
        self._directory = directory
        self._quota = quota
        self._left = 0  # bytes that may be written before the next check of the disk
        self.used = sum(size for _, _, size, _ in self.files())

    def files(self) -> Iterator[tuple[str, int, int, float]]:
        """(key, fence, bytes, time of the last write) of each log file."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if (match := NAME.match(entry.name)) is None:
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield match[1], int(match[2]), status.st_size, status.st_mtime

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes may be written."""
        if self.used + size > self._quota:
            return False
        if size > self._left:
            status = os.statvfs(self._directory)
            spare = min(bounds.LOGS_SPARE, status.f_blocks * status.f_frsize // 10)
            self._left = min(LOOK_EVERY, status.f_bavail * status.f_frsize - spare)
        return size <= self._left

    def add(self, size: int) -> None:
        """Count written bytes."""
        self.used += size
        self._left -= size

    def subtract(self, size: int) -> None:
        """Count removed bytes."""
        self.used -= size
        self._left = 0
