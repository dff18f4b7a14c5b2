"""Defines the spool of one log at the broker, and the quota of disk that all spools share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator

import msgspec

from fabric import bounds

#: Bytes that are written between two looks at how much room the disk has.
LOOK_EVERY = 16 * bounds.MIB
#: Bytes of a found log that are digested at a time: some milliseconds.
DIGESTED_AT_ONCE = 4 * bounds.MIB

#: The digest of nothing.
EMPTY = hashlib.sha256().hexdigest()
NAME = re.compile(r"([0-9a-f]{64})\.([0-9]{1,19})\Z")


class Spool(msgspec.Struct, eq=False, gc=False):
    """The log of one attempt, as far as it has come."""

    key: str
    fence: int
    worker: str
    have: int = 0  # bytes, from the start
    short: bytes | None = b""  # these; None: they are in the file
    filed: int = 0  # bytes of the file, of which the last may be of a former try
    known: int = 0  # bytes that exist, as far as told
    size: int = -1  # of the whole, once told
    sha256: str = ""
    ended: float | None = None  # when
    reached: int = 0  # bytes, when it ended or was last seen to have grown since,
    moved: float = float("-inf")  # and when that was
    whole: bool = False  # size and digest are right
    broken: str = ""  # why it cannot be stored
    restarted: bool = False  # once, because the digest was wrong
    asked: float = float("-inf")
    digest: hashlib._Hash | None = None  # of what is here; None: of nothing
    digested: int = 0  # bytes of what is here; fewer in a log that was found

    @property
    def behind(self) -> bool:
        """Not all that is here is digested."""
        return self.digested < self.have

    def received(self, data: bytes | memoryview) -> None:
        """So much more is here."""
        if not self.behind:
            self.update_digest(data)
        self.have += len(data)

    def update_digest(self, data: bytes | memoryview) -> None:
        """What comes next of it."""
        if self.digest is None:
            self.digest = hashlib.sha256()
        self.digest.update(data)
        self.digested += len(data)

    def restart(self) -> None:
        """Nothing of it is here any more."""
        self.known = max(self.known, self.have)
        self.have = self.digested = 0
        self.digest = None

    def is_correct(self) -> bool:
        """Whether what is here is all of it."""
        found = EMPTY if self.digest is None else self.digest.hexdigest()
        return self.have == self.size and found == self.sha256

    @property
    def lacks(self) -> bool:
        return (self.have < self.size or self.have < self.known) and not self.broken


def found_size(path: str) -> int:
    """Bytes of a log that a former run of the broker left; 0 if there is none."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return 0


class LogDisk:
    """How much room logs may have yet: of their quota, and of the disk.

    On the disk they leave `bounds.LOGS_SPARE` bytes, or a tenth of it, to the journal.
    """

    def __init__(self, directory: str, quota: int = bounds.LOGS_DISK) -> None:
        self._directory = directory
        self._quota = quota
        self._left = 0  # bytes that may be written before the next look at the disk
        self.used = sum(size for _, _, size, _ in self.files())

    def files(self) -> Iterator[tuple[str, int, int, float]]:
        """(key, fence, bytes, when it was written last) of each file of a log."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if (match := NAME.match(entry.name)) is None:
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield match[1], int(match[2]), status.st_size, status.st_mtime

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be written."""
        if self.used + size > self._quota:
            return False
        if size > self._left:
            status = os.statvfs(self._directory)
            spare = min(bounds.LOGS_SPARE, status.f_blocks * status.f_frsize // 10)
            self._left = min(LOOK_EVERY, status.f_bavail * status.f_frsize - spare)
        return size <= self._left

    def add(self, size: int) -> None:
        """So many bytes were written."""
        self.used += size
        self._left -= size

    def subtract(self, size: int) -> None:
        """So many bytes were removed."""
        self.used -= size
        self._left = 0
