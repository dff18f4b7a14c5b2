"""What the broker remembers over restarts: requests, finished attempts, how long builds took.

A SQLite file (WAL) that several brokers may share.  Writing is done by a thread of its own, in
batches that are fsynced.  What was *promised* to somebody - that a request is taken in or over, a
worker drained - is written at once, and who waits for an answer gets it when `kept` has come as
far; the rest is gathered, and a crash costs its last quarter of a second.  What is in flight is not
written down: workers report it.  A damaged file is set aside, and never fatal;
a disk without room is, when the broker starts: it would forget what is in a file that is fine.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from fabric.errors import MachineFault
from fabric.scheduling.events import Drained, Ended, Learned, Opened, Remembered
from fabric.scheduling.model import Durations
from fabric.wire.messages import Order, Submit, Update

#: Version of the file's tables.
VERSION = 2
#: Rows kept of each history, and steps of all requests that are over.
ATTEMPTS_KEPT = 20_000
REQUESTS_KEPT = 200
STEPS_KEPT = 100_000
#: Seconds after which a request whose end nobody saw counts as over.
ABANDONED = 30 * 86400.0
#: Entries after which histories are cut to size again.
PRUNE_EVERY = 5_000
#: Seconds to gather what is written together.
GATHER = 0.25
#: Seconds to wait for another broker's transaction.
PATIENCE = 2.0
#: Seconds between attempts at writing what was promised, while nothing can be written.
RETRY = 5.0

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS durations (
    kind TEXT, name TEXT, arch TEXT, seconds REAL, at REAL,
    PRIMARY KEY (kind, name, arch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT, fence INTEGER, worker TEXT, kind TEXT, name TEXT, arch TEXT,
    result TEXT, seconds REAL, message TEXT, at REAL);
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, title TEXT, requester TEXT, intent BLOB, state TEXT, opened REAL,
    closed REAL, message TEXT, done INTEGER, cached INTEGER, failed INTEGER, total INTEGER,
    outcome BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drained (worker TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
_DURATION = "INSERT OR REPLACE INTO durations VALUES (?, ?, ?, ?, ?)"
_ATTEMPT = "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OPENED = (
    "INSERT INTO requests (id, title, requester, intent, state, opened)"
    " VALUES (?, ?, ?, ?, 'open', ?)"
    " ON CONFLICT DO UPDATE SET state = 'open', intent = excluded.intent"
)
_CLOSED = (
    "UPDATE requests SET intent = NULL, state = ?, closed = ?, message = ?, done = ?, cached = ?,"
    " failed = ?, total = ?, outcome = ? WHERE id = ?"
)
_FORGOTTEN = "DELETE FROM requests WHERE id = ?"
_DRAINED = "INSERT OR IGNORE INTO drained VALUES (?)"
_RESUMED = "DELETE FROM drained WHERE worker = ?"

#: What somebody hears of only when it is on the disk.
_PROMISES = frozenset({_OPENED, _CLOSED, _FORGOTTEN, _DRAINED, _RESUMED})

#: What SQLite says on a full disk.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

_encode = msgspec.msgpack.Encoder().encode
_decode_intent = msgspec.msgpack.Decoder(Order | Submit).decode
_decode_outcome = msgspec.msgpack.Decoder(Update).decode

#: A statement, and what to fill in.
Entry = tuple[str, tuple[object, ...]]


class Journal:
    """The journal at ``path``, whose directory is made.

    ``epoch`` is larger than in any run before; ``durations`` is the history as it was, and
    ``drained_workers`` are those that an operator wants to get nothing.  ``first`` says that
    no broker has run before: no worker can be at anything for one.  ``wake`` is called by the
    thread whenever ``kept`` has grown.
    """

    def __init__(
        self, path: Path, warn: Callable[[str], None], wake: Callable[[], None] = lambda: None
    ) -> None:
        self._warn = warn
        self._wake = wake
        self._queue: SimpleQueue[tuple[list[Entry], int] | None] = SimpleQueue()
        self._entries: list[Entry] = []  # not given to the thread yet
        #: promises made so far, and how many of these are on the disk
        self.promised = self.kept = 0
        self.durations: Durations = {}
        self.drained_workers: frozenset[str] = frozenset()
        self.epoch = int(time.time())
        self.first = True
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

    def opened(self, what: Opened) -> None:
        """A request began."""
        intent = what.intent
        row = (what.request, what.title, intent.requester, _encode(intent), time.time())
        self._promise(_OPENED, row)

    def closed(self, outcome: Update) -> None:
        """A request is over, and this is how."""
        states = [step.state for step in outcome.steps]
        ended = (states.count("done"), states.count("cached"), states.count("failed"))
        told = (outcome.state, time.time(), outcome.message, *ended, len(states))
        self._promise(_CLOSED, (*told, _encode(outcome), outcome.request))

    def forgotten(self, request: str) -> None:
        """A request is over, and whoever asks for it again means a new one."""
        self._promise(_FORGOTTEN, (request,))

    def drained(self, what: Drained) -> None:
        """An operator's wish about a worker."""
        self._promise(_DRAINED if what.on else _RESUMED, (what.worker,))

    def _promise(self, statement: str, row: tuple[object, ...]) -> None:
        self.promised += 1
        self._entries.append((statement, row))

    def flush(self) -> None:
        """Have written what was told since the last time.  Never waits."""
        if self._entries:
            self._queue.put((self._entries, self.promised))
            self._entries = []

    def unfinished(self) -> list[Order | Submit]:
        """Requests that began and are not over, oldest first.

        To be called before anything is written.
        """
        rows = self._db.execute(
            "SELECT id, intent FROM requests WHERE state = 'open' ORDER BY opened"
        )
        found = []
        for id, intent in rows:
            try:
                found.append(_decode_intent(intent))
            except msgspec.MsgspecError as error:
                self._warn(f"request {id} cannot be taken up again: {error}")
        return found

    def finished(self) -> list[Remembered]:
        """Requests that are over, the one that ended first first.

        To be called before anything is written.
        """
        rows = self._db.execute(
            "SELECT id, requester, opened, outcome FROM requests WHERE state <> 'open'"
            " ORDER BY closed"
        )
        now = time.time()
        found = []
        for id, requester, opened, outcome in rows:
            try:
                ago = max(0.0, now - opened)
                found.append(Remembered(_decode_outcome(outcome), requester, ago))
            except (msgspec.MsgspecError, TypeError) as error:
                self._warn(f"how request {id} ended is not known: {error}")
        return found

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
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _FULL and path.exists():
                    raise MachineFault(
                        f"{path}: {error}; without it, what was ordered would be forgotten: make"
                        " room on that disk"
                    ) from None
                self._warn(f"{path}: {error}; going on without a journal")
                self.first = False  # for all that is known
                break
            except sqlite3.DatabaseError as error:
                self.first = False
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
            if version > VERSION:
                raise sqlite3.OperationalError(f"it has version {version}, and not {VERSION}")
            if version == 1:  # its requests could not be taken up again
                db.execute("DROP TABLE requests")
            if version < VERSION:
                db.executescript(_SCHEMA)
            with _transaction(db):
                # The clock only serves to go on above a journal that was lost.
                last = db.execute("SELECT max(epoch) FROM epochs").fetchone()[0]
                self.first = self.first and last is None
                self.epoch = int(time.time()) if last is None else last + 1
                db.execute("DELETE FROM epochs")
                db.execute("INSERT INTO epochs VALUES (?)", (self.epoch,))
            rows = db.execute("SELECT kind, name, arch, seconds FROM durations")
            self.drained_workers = frozenset(row[0] for row in db.execute("SELECT * FROM drained"))
            self.durations = {(kind, name, arch): seconds for kind, name, arch, seconds in rows}
        except sqlite3.Error:
            db.close()
            raise
        return db

    # -- writing -------------------------------------------------------------------------------

    def _write(self) -> None:
        """The thread: gather, write, prune now and then."""
        running, written = True, 0
        owed: list[Entry] = []  # promises that could not be written yet
        while running:
            entries, promised, running = self._gather(RETRY if owed else None)
            entries = owed + entries
            try:
                with _transaction(self._db):
                    for statement, row in entries:
                        self._db.execute(statement, row)
                owed, written = [], written + len(entries)
            except sqlite3.Error as error:
                owed = [entry for entry in entries if entry[0] in _PROMISES]
                self._warn(
                    f"the journal cannot be written: {error}; {len(entries) - len(owed)} entries"
                    f" are lost, {len(owed)} are tried again and lost if the broker ends before"
                )
            if promised > self.kept:  # as well as could be: nobody is to wait for a full disk
                self.kept = promised
                self._wake()
            if not running or written >= PRUNE_EVERY:
                written = 0
                self._prune()
        self._db.close()

    def _gather(self, patience: float | None) -> tuple[list[Entry], int, bool]:
        """Entries to be written together, the promises up to there, and whether more may come.

        A promise is not waited with, and all that waits beside it is taken along.
        """
        entries: list[Entry] = []
        promised = self.kept
        with contextlib.suppress(Empty):
            batch = self._queue.get(timeout=patience)
            until = time.monotonic() + GATHER
            while batch is not None:
                entries += batch[0]
                promised = batch[1]
                left = 0.0 if promised > self.kept else max(0.0, until - time.monotonic())
                batch = self._queue.get(timeout=left)
            return entries, promised, False
        return entries, promised, True

    def _prune(self) -> None:
        with contextlib.suppress(sqlite3.Error), _transaction(self._db):  # another time, then
            self._db.execute(
                "DELETE FROM requests WHERE state = 'open' AND opened < ?",
                (time.time() - ABANDONED,),
            )
            self._db.execute(
                "DELETE FROM attempts WHERE rowid <= (SELECT max(rowid) FROM attempts) - ?",
                (ATTEMPTS_KEPT,),
            )
            self._db.execute(
                "DELETE FROM requests WHERE id IN (SELECT id FROM ("
                " SELECT id, row_number() OVER newest AS place, sum(total) OVER newest AS steps"
                " FROM requests WHERE state <> 'open'"
                " WINDOW newest AS (ORDER BY closed DESC ROWS UNBOUNDED PRECEDING))"
                " WHERE place > ? OR (steps > ? AND place > 1))",
                (REQUESTS_KEPT, STEPS_KEPT),
            )


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):  # another broker is just at it
                db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
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
