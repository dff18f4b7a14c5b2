"""The thread that writes the journal, and goes on trying while nothing can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue

from fabric.errors import NO_ROOM

#: Entries after which the journal is pruned.
PRUNE_EVERY = 5_000
#: Seconds to gather what is written together.
GATHER = 0.25
#: Seconds between attempts at writing, while nothing can be written,
RETRY = 1.0
#: bytes of room there must be then: SQLite gets along with less, but not for long,
ROOM = 1 << 20
#: and entries that are no promises, which are kept for then.
OWED = 10_000

#: What SQLite and the system say on a full disk.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_NO_ROOM = (*NO_ROOM, errno.EFBIG)

#: A statement, and what to fill in.
Entry = tuple[str, tuple[object, ...]]


class Scribe:
    """Writes to ``db``, a file at ``path``.

    ``promises`` are statements that somebody waits for.  ``prune`` is called in the thread now and
    then; ``wake`` whenever ``kept`` or ``failure`` has changed.  What is not ``needed`` never
    fails: it counts as kept, and is written if that can be done.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        promises: frozenset[str],
        *,
        warn: Callable[[str], None],
        wake: Callable[[], None],
        prune: Callable[[], None],
        needed: bool,
    ) -> None:
        self._db = db
        self._path = path
        self._promises = promises
        self._warn = warn
        self._wake = wake
        self._prune = prune
        self._needed = needed
        self._queue: SimpleQueue[tuple[list[Entry], int] | None] = SimpleQueue()
        self._taken = 0  # promises that the thread has heard of
        self._failing = False
        #: so many promises are on the disk; and why nothing can be written, "" if it can.  What
        #: could be written is kept before there is no failure any more.
        self.kept = 0
        self.failure = ""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def write(self, entries: list[Entry], promised: int) -> None:
        """Have these written, with which so many promises were made in all.  Never waits."""
        self._queue.put((entries, promised))

    def close(self, timeout: float) -> None:
        """Write what is left, and close the file."""
        self._queue.put(None)
        self._thread.join(timeout)

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        running, written = True, 0
        owed: list[Entry] = []  # what could not be written yet
        while running:
            entries, running = self._gather()
            owed += entries
            try:
                if self._failing:
                    self._look_for_room()
                with transaction(self._db):
                    for statement, some in groupby(owed, itemgetter(0)):
                        self._db.executemany(statement, map(itemgetter(1), some))
            except (sqlite3.Error, OSError) as error:
                owed = self._to_try_again(owed)
                self._went(reason(self._path, error))
                continue
            written += len(owed)
            owed = []
            self._went("")
            if not running or written >= PRUNE_EVERY:
                written = 0
                self._prune()
        if owed:
            self._warn(f"{len(owed)} entries of the journal are lost")
        self._db.close()

    def _gather(self) -> tuple[list[Entry], bool]:
        """Entries to be written together, and whether more may come.

        A promise is not waited with, and all that waits beside it is taken along.
        """
        entries: list[Entry] = []
        until = time.monotonic() + RETRY
        with contextlib.suppress(Empty):
            batch = self._queue.get(timeout=RETRY if self._failing else None)
            if not self._failing:
                until = time.monotonic() + GATHER
            while batch is not None:
                entries += batch[0]
                self._taken = batch[1]
                at_once = self._taken > self.kept and not self._failing
                left = 0.0 if at_once else max(0.0, until - time.monotonic())
                batch = self._queue.get(timeout=left)
            return entries, False
        return entries, True

    def _went(self, failure: str) -> None:
        """Let it be known how writing went."""
        if self._failing != bool(failure):
            self._failing = bool(failure)
            again = "the journal is written again"
            self._warn(f"the journal cannot be written: {failure}" if failure else again)
        kept = self.kept if failure and self._needed else self._taken
        failure = failure if self._needed else ""
        if (kept, failure) != (self.kept, self.failure):
            self.kept = kept
            self.failure = failure
            self._wake()

    def _look_for_room(self) -> None:
        """OSError or sqlite3.Error if a write would fail, also if there is nothing to write."""
        with tempfile.TemporaryFile(dir=self._path.parent, buffering=0) as file:
            file.write(bytes(ROOM))
            os.fsync(file.fileno())
        with transaction(self._db):
            self._db.execute("UPDATE epochs SET epoch = epoch")

    def _to_try_again(self, entries: list[Entry]) -> list[Entry]:
        """All promises, and of the others those that came last."""
        excess = sum(entry[0] not in self._promises for entry in entries) - OWED
        kept = []
        for entry in entries:
            if excess > 0 and entry[0] not in self._promises:
                excess -= 1
            else:
                kept.append(entry)
        return kept


def is_full(error: Exception) -> bool:
    """Whether a disk without room may be the reason."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _FULL
    return getattr(error, "errno", 0) in _NO_ROOM


def reason(path: Path, error: Exception) -> str:
    """What is wrong with a file, and what to do about it, if that is known."""
    told = getattr(error, "strerror", "") or error
    return f"{path}: {told}" + ("; make room on that disk" if is_full(error) else "")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it is written, or nothing.  sqlite3.Error if that fails."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
