"""Writes the journal in a thread, and retries while the disk does not accept writes."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from fabric.errors import NO_ROOM
from fabric.scheduling.events import Remembered
from fabric.wire.messages import BuildGraph, BuildOrder

#: Entries after which the journal is pruned.
PRUNE_EVERY = 5_000
#: Seconds to gather what is written together.
GATHER = 0.25
#: Seconds between attempts at writing, while nothing can be written,
RETRY = 1.0
#: bytes of room there must be then: SQLite gets along with less, but not for long,
ROOM = 1 << 20
#: and rows of each history that are kept for then.
BACKLOG = 10_000
#: Rows of a history that SQLite is given at a time.
AT_ONCE = 200

#: What SQLite and the system say on a full disk.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_NO_ROOM = (*NO_ROOM, errno.EFBIG)

#: A statement, and what to fill in.
Statement = tuple[str, tuple[object, ...]]
#: "INSERT ... VALUES (?, ...)" -> what to fill in, for one row after the other
Histories = dict[str, list[object]]


class StoredRequest(NamedTuple):
    """What is written of a request, and as what the core takes it up."""

    id: bytes
    written: object
    event: Remembered | BuildOrder | BuildGraph


class JournalWriter:
    """Writes to ``db``, a file at ``path``: promises in their order, and histories.

    ``prune`` is called in the thread now and then; ``wake`` whenever ``kept`` or ``failure`` has
    changed.  What is not ``needed`` never fails: it counts as kept, and is written if that can be
    done.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        *,
        warn: Callable[[str], None],
        wake: Callable[[], None],
        prune: Callable[[], None],
        needed: bool,
        threaded: bool = True,
    ) -> None:
        """Not ``threaded``: whoever made it calls `step`, and nothing is written otherwise."""
        self._db = db
        self._path = path
        self._warn = warn
        self._wake = wake
        self._prune = prune
        self._needed = needed
        self._queue: SimpleQueue[tuple[list[Statement], Histories] | None] = SimpleQueue()
        self._urgent = threading.Event()  # what is in the queue is not to wait
        self._statements: list[Statement] = []  # that are not written yet,
        self._histories: Histories = {}  # and of these what is not
        self._received = 0  # promises that the thread has heard of
        self._failing = False
        self._ending = False  # nothing more comes
        self._written = 0  # entries since the journal was pruned
        #: so many promises are on the disk; and why nothing can be written, "" if it can.  What
        #: could be written is kept before there is no failure any more.
        self.durable = 0
        self.error = ""
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def write(self, statements: list[Statement], histories: Histories) -> None:
        """Have these written, too.  Never waits."""
        self._queue.put((statements, histories))
        if statements and not self._failing:
            self._urgent.set()

    def close(self, timeout: float) -> None:
        """Write what is left, and close the file."""
        self._queue.put(None)
        self._urgent.set()
        if self._thread is not None:
            self._thread.join(timeout)
        else:
            self.step()
            self._finish()

    @property
    def idle(self) -> bool:
        """Whether all that was handed over is written."""
        return self._queue.empty() and not self._backlog() and not self._failing

    def step(self) -> bool:
        """Write what has been handed over; False if nothing will follow.

        A failed write stays for the next step.
        """
        while not (self._ending or self._queue.empty()):
            self._accept(self._queue.get())
        try:
            if self._failing:
                self._check_room()
            with transaction(self._db):
                for single in self._statements:
                    self._db.execute(*single)
                for statement, values in self._histories.items():
                    self._insert(statement, values)
        except (sqlite3.Error, OSError) as error:
            for statement, values in self._histories.items():
                del values[: -BACKLOG * statement.count("?")]  # the last are kept
            self._set_result(error_text(self._path, error))
            return not self._ending
        self._written += self._backlog()
        self._statements.clear()
        self._histories.clear()
        self._set_result("")
        if self._ending or self._written >= PRUNE_EVERY:
            self._written = 0
            self._prune()
        return not self._ending

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        self._wait()
        while self.step():
            self._wait()
        self._finish()

    def _wait(self) -> None:
        """Until something is to be written, and for more that can be written with it.

        A promise does not wait, and takes along all that waits beside it.
        """
        if not self._failing:
            self._accept(self._queue.get())
        if not self._ending:
            self._urgent.wait(RETRY if self._failing else GATHER)
        self._urgent.clear()

    def _accept(self, batch: tuple[list[Statement], Histories] | None) -> None:
        if batch is None:
            self._ending = True
            return
        self._statements += batch[0]
        self._received += len(batch[0])
        for statement, values in batch[1].items():
            self._histories.setdefault(statement, []).extend(values)

    def _finish(self) -> None:
        if self._backlog():
            self._warn(f"{self._backlog()} entries of the journal are lost")
        self._db.close()

    def _insert(self, statement: str, values: list[object]) -> None:
        """Write rows of a history, many in one step of SQLite.

        Before each step the thread gives away the interpreter, and then has to wait for it.
        """
        width = statement.count("?")
        whole = len(values) - len(values) % (AT_ONCE * width)
        many = statement + f", {statement[statement.rindex('(') :]}" * (AT_ONCE - 1)
        self._db.executemany(many, _parts(values[:whole], AT_ONCE * width))
        self._db.executemany(statement, _parts(values[whole:], width))

    def _backlog(self) -> int:
        """Promises and rows that are not written yet."""
        rows = (len(values) // what.count("?") for what, values in self._histories.items())
        return len(self._statements) + sum(rows)

    def _set_result(self, error: str) -> None:
        """Let it be known how writing went."""
        if self._failing != bool(error):
            self._failing = bool(error)
            recovered = "the journal is written again"
            self._warn(f"the journal cannot be written: {error}" if error else recovered)
        durable = self.durable if error and self._needed else self._received
        error = error if self._needed else ""
        if (durable, error) != (self.durable, self.error):
            self.durable = durable
            self.error = error
            self._wake()

    def _check_room(self) -> None:
        """OSError or sqlite3.Error if a write would fail, also if there is nothing to write."""
        with tempfile.TemporaryFile(dir=self._path.parent, buffering=0) as file:
            file.write(bytes(ROOM))
            os.fsync(file.fileno())
        with transaction(self._db):
            self._db.execute("UPDATE epochs SET epoch = epoch")


def _parts(values: list[object], size: int) -> Iterator[list[object]]:
    return (values[first : first + size] for first in range(0, len(values), size))


def is_full(error: Exception) -> bool:
    """Whether a disk without room may be the reason."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _FULL
    return getattr(error, "errno", 0) in _NO_ROOM


def error_text(path: Path, error: Exception) -> str:
    """What is wrong with a file, and what to do about it, if that is known."""
    text = getattr(error, "strerror", "") or error
    return f"{path}: {text}" + ("; make room on that disk" if is_full(error) else "")


def write_private(file: Path, data: bytes) -> None:
    """A file that nobody else may read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        output.write(data)


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
