"""What the broker remembers over restarts: requests, finished attempts, how long builds took.

A SQLite file (WAL) that several brokers may share.  Writing is done by a thread of its own, in
batches, so nothing ever waits for it; a power cut costs the last second.  What is in flight is
not written down: workers report it.  A damaged file is set aside, and never fatal.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

from fabric.scheduling.events import Ended, Learned
from fabric.scheduling.model import Durations

#: Version of the file's tables.
VERSION = 1
#: Rows kept of each history.
ATTEMPTS_KEPT = 20_000
REQUESTS_KEPT = 200
#: Seconds after which a request whose end nobody saw counts as over.
ABANDONED = 30 * 86400.0
#: Seconds to gather what is written together.
GATHER = 0.25
#: Seconds to wait for another broker's transaction.
PATIENCE = 2.0

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS durations (
    kind TEXT, name TEXT, arch TEXT, seconds REAL, at REAL,
    PRIMARY KEY (kind, name, arch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT, fence INTEGER, worker TEXT, kind TEXT, name TEXT, arch TEXT,
    result TEXT, seconds REAL, message TEXT, at REAL);
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, title TEXT, submit BLOB, state TEXT, opened REAL, closed REAL)
    WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
_DURATION = "INSERT OR REPLACE INTO durations VALUES (?, ?, ?, ?, ?)"
_ATTEMPT = "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OPENED = "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, 'open', ?, NULL)"
_CLOSED = "UPDATE requests SET state = ?, closed = ?, submit = NULL WHERE id = ?"

#: A statement, and what to fill in.
Entry = tuple[str, tuple[object, ...]]


class Journal:
    """The journal at ``path``, whose directory is made.

    ``epoch`` is larger than in any run before; ``durations`` is the history as it was.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._queue: SimpleQueue[list[Entry] | None] = SimpleQueue()
        self._entries: list[Entry] = []  # not given to the thread yet
        self.durations: Durations = {}
        self.epoch = int(time.time())
        self._db = self._open(path)
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    # -- what is remembered --------------------------------------------------------------------

    def learned(self, what: Learned) -> None:
        """A build took this long."""
        row = (what.kind, what.name, what.arch, what.seconds, time.time())
        self._entries.append((_DURATION, row))

    def ended(self, what: Ended) -> None:
        """An attempt ended."""
        outcome = what.outcome
        told = ("lost", 0.0, "")
        if outcome is not None:
            told = (outcome.result, outcome.seconds, outcome.message)
        row = (what.key, what.fence, what.worker, what.kind, what.name, what.arch)
        self._entries.append((_ATTEMPT, (*row, *told, time.time())))

    def opened(self, id: str, title: str, submit: bytes) -> None:
        """A request began; ``submit`` is its encoded message."""
        self._entries.append((_OPENED, (id, title, submit, time.time())))

    def closed(self, id: str, state: str) -> None:
        """A request is over."""
        self._entries.append((_CLOSED, (state, time.time(), id)))

    def flush(self) -> None:
        """Have written what was told since the last time.  Never waits."""
        if self._entries:
            self._queue.put(self._entries)
            self._entries = []

    def unfinished(self) -> list[bytes]:
        """The encoded `Submit` of each request that began and is not over, oldest first.

        To be called before anything is written.
        """
        rows = self._db.execute("SELECT submit FROM requests WHERE state = 'open' ORDER BY opened")
        return [row[0] for row in rows]

    def close(self, timeout: float = PATIENCE) -> None:
        """Write what is left."""
        self.flush()
        self._queue.put(None)
        self._thread.join(timeout)

    # -- opening -------------------------------------------------------------------------------

    def _open(self, path: Path) -> sqlite3.Connection:
        for attempt in range(2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return self._read(_connect(str(path)))
            except (sqlite3.OperationalError, OSError) as error:
                self._warn(f"{path}: {error}; going on without a journal")
                break
            except sqlite3.DatabaseError as error:
                if attempt:
                    break
                aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
                self._warn(f"{path}: {error}; moved to {aside.name}, beginning a new one")
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.rename(aside)
        return self._read(_connect(":memory:"))

    def _read(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.OperationalError(f"it has version {version}, and not {VERSION}")
            if version == 0:
                db.executescript(_SCHEMA)
            with _transaction(db):
                # The clock only serves to go on above a journal that was lost.
                last = db.execute("SELECT max(epoch) FROM epochs").fetchone()[0]
                self.epoch = int(time.time()) if last is None else last + 1
                db.execute("DELETE FROM epochs")
                db.execute("INSERT INTO epochs VALUES (?)", (self.epoch,))
            rows = db.execute("SELECT kind, name, arch, seconds FROM durations")
            self.durations = {(kind, name, arch): seconds for kind, name, arch, seconds in rows}
        except sqlite3.Error:
            db.close()
            raise
        return db

    # -- writing -------------------------------------------------------------------------------

    def _write(self) -> None:
        """The thread: gather, write, and prune at the end."""
        running = True
        while running:
            batch = [self._queue.get()]
            with contextlib.suppress(Empty):
                until = time.monotonic() + GATHER
                while batch[-1] is not None:
                    batch.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
            running = batch[-1] is not None
            entries = [entry for each in batch if each is not None for entry in each]
            try:
                if entries:
                    with _transaction(self._db):
                        for statement, row in entries:
                            self._db.execute(statement, row)
                if not running:
                    self._prune()
            except sqlite3.Error as error:
                self._warn(
                    f"the journal cannot be written: {error}; {len(entries)} entries are lost"
                )
        self._db.close()

    def _prune(self) -> None:
        with _transaction(self._db):
            self._db.execute(
                "DELETE FROM requests WHERE state = 'open' AND opened < ?",
                (time.time() - ABANDONED,),
            )
            self._db.execute(
                "DELETE FROM attempts WHERE rowid <= (SELECT max(rowid) FROM attempts) - ?",
                (ATTEMPTS_KEPT,),
            )
            self._db.execute(
                "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE state <> 'open'"
                " ORDER BY closed DESC LIMIT -1 OFFSET ?)",
                (REQUESTS_KEPT,),
            )


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):  # another broker is just at it
                db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
