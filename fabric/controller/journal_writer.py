"""Writes the journal in a thread, and retries while the disk does not accept writes."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

from fabric.controller.journal_file import error_text, transaction

#: Entries written between two calls of ``prune``.
PRUNE_EVERY = 5_000
#: Seconds for which rows of histories are gathered.
GATHER = 0.25
#: Seconds between two attempts after a failure.
RETRY = 1.0
#: Bytes of free disk needed after a failure: with less, SQLite would fail again soon.
ROOM = 1 << 20
#: Rows of each history kept in memory after a failure; the oldest are dropped.
BACKLOG = 10_000
#: Rows of a history in one step of SQLite.
AT_ONCE = 200

#: A statement and its parameters.
Statement = tuple[str, tuple[object, ...]]
#: "INSERT ... VALUES (?, ...)" -> parameters of all rows, one row after the other.
Histories = dict[str, list[object]]


class JournalWriter:
    """Writes statements, in their order, and rows of histories to ``db``, the file at ``path``.

    ``wake`` is called whenever ``durable`` or ``error`` has changed.  If the journal is not
    ``needed``, a failure does not count: all entries are durable, and written if possible.
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
        """Without ``threaded``, nothing is written until `step` is called."""
        self._db = db
        self._path = path
        self._warn = warn
        self._wake = wake
        self._prune = prune
        self._needed = needed
        self._queue: SimpleQueue[tuple[list[Statement], Histories] | None] = SimpleQueue()
        self._urgent = threading.Event()  # the queue has a statement
        self._statements: list[Statement] = []  # not written yet
        self._histories: Histories = {}  # not written yet
        self._received = 0  # statements that `step` has taken from the queue
        self._failing = False
        self._ending = False
        self._written = 0  # entries since the journal was pruned
        #: number of statements on the disk; set before ``error`` becomes ""
        self.durable = 0
        #: why nothing can be written; "" if it can
        self.error = ""
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def write(self, statements: list[Statement], histories: Histories) -> None:
        """Queue entries for the thread.  Never waits."""
        self._queue.put((statements, histories))
        if statements and not self._failing:
            self._urgent.set()

    def close(self, timeout: float) -> None:
        """Write the pending entries, and close the file; wait at most ``timeout`` seconds."""
        self._queue.put(None)
        self._urgent.set()
        if self._thread is not None:
            self._thread.join(timeout)
        else:
            self.step()
            self._finish()

    @property
    def idle(self) -> bool:
        """Whether all entries are written."""
        return self._queue.empty() and not self._backlog() and not self._failing

    def step(self) -> bool:
        """Write the queued entries; False after `close`.

        Entries whose write fails stay for the next step.
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
                del values[: -BACKLOG * statement.count("?")]
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
        """Wait for entries, then `GATHER` seconds for more; a statement ends the wait at once."""
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

        The thread releases the interpreter before each step, and has to wait for it afterwards.
        """
        width = statement.count("?")
        whole = len(values) - len(values) % (AT_ONCE * width)
        many = statement + f", {statement[statement.rindex('(') :]}" * (AT_ONCE - 1)
        self._db.executemany(many, _parts(values[:whole], AT_ONCE * width))
        self._db.executemany(statement, _parts(values[whole:], width))

    def _backlog(self) -> int:
        """Number of statements and rows that are not written yet."""
        rows = (len(values) // what.count("?") for what, values in self._histories.items())
        return len(self._statements) + sum(rows)

    def _set_result(self, error: str) -> None:
        """Publish the result of a write; ``error`` is "" if it succeeded."""
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
        """OSError or sqlite3.Error if a write would fail, even of a single byte."""
        with tempfile.TemporaryFile(dir=self._path.parent, buffering=0) as file:
            file.write(bytes(ROOM))
            os.fsync(file.fileno())
        with transaction(self._db):
            self._db.execute("UPDATE epochs SET epoch = epoch")


def _parts(values: list[object], size: int) -> Iterator[list[object]]:
    return (values[first : first + size] for first in range(0, len(values), size))
