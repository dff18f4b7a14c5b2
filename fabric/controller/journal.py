"""Keeps requests, finished attempts and build durations over restarts of the broker.

The journal is a SQLite file (WAL) that several brokers can share.  A thread
(`fabric.controller.journal_writer`) writes it in batches and fsyncs each.  Records that somebody
was promised (a request was accepted or is over, a worker is drained) are written at once; the
answer is sent when `kept` has reached the record.  Other records are gathered, and a crash loses
at most a quarter of a second of them.  Work in flight is not recorded: workers report it.

While the disk is full, `trouble` contains the reason: the broker promises nothing, and writes what
ends meanwhile as soon as there is room.  A damaged file is moved aside.  A broker does not start
with a file that it cannot open, because it would forget its contents.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from fabric.controller.journal_writer import (
    JournalWriter,
    Statement,
    StoredRequest,
    error_text,
    is_full,
    transaction,
    write_private,
)
from fabric.errors import MachineFault
from fabric.scheduling.events import Drained, Ended, Learned, Opened, Remembered
from fabric.scheduling.model import Durations
from fabric.wire.messages import BuildGraph, BuildOrder, Update

#: Version of the file's tables.
VERSION = 3
#: Rows kept of each history, and steps of all requests that are over.
ATTEMPTS_KEPT = 20_000
REQUESTS_KEPT = 200
STEPS_KEPT = 100_000
#: Seconds after which a request that no broker takes up counts as over.
ABANDONED = 30 * 86400.0
#: Seconds that a build may have taken: no more is believed.
LONGEST = 1e9
#: An epoch from which on a file is damaged.
_EPOCHS = 2**32
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
    id TEXT PRIMARY KEY, title TEXT, requester TEXT, intent BLOB, state TEXT, opened REAL,
    closed REAL, message TEXT, done INTEGER, cached INTEGER, failed INTEGER, total INTEGER,
    outcome BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secrets (secret BLOB);
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
#: What is of another type is damaged.
_DURATIONS = (
    "SELECT kind, name, arch, seconds FROM durations WHERE typeof(seconds) IN ('real', 'integer')"
    " AND seconds BETWEEN 0 AND ? AND typeof(kind) = 'text' AND typeof(name) = 'text'"
    " AND typeof(arch) = 'text'"
)
#: The id as bytes, for it may be damaged.
_STORED = (
    "SELECT CAST(id AS BLOB), requester, opened, state = 'open' AS goes_on,"
    " coalesce(CASE state WHEN 'open' THEN intent ELSE outcome END, intent, outcome)"
    " FROM requests ORDER BY goes_on, CASE state WHEN 'open' THEN opened ELSE closed END"
)
_DELETE_BY_BYTES = "DELETE FROM requests WHERE CAST(id AS BLOB) = ?"
_DELETE = "DELETE FROM requests WHERE id = ?"
_DRAINED = "INSERT OR IGNORE INTO drained VALUES (?)"
_RESUMED = "DELETE FROM drained WHERE worker = ?"

_encode = msgspec.msgpack.Encoder().encode
_decode_intent = msgspec.msgpack.Decoder(BuildOrder | BuildGraph).decode
_decode_outcome = msgspec.msgpack.Decoder(Update).decode


def connect(path: str) -> sqlite3.Connection:
    """A connection whose transactions are on the disk when they end."""
    if path != ":memory:":  # it holds a secret, and so do the files that SQLite puts beside it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda text: text.decode(errors="replace")
    try:
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):  # another broker is just at it
                db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        db.close()
        raise
    return db


class Storage(NamedTuple):
    """How a journal reaches its file."""

    clock: Callable[[], float] = time.time  # seconds since 1970
    connect: Callable[[str], sqlite3.Connection] = connect
    random: Callable[[int], bytes] = os.urandom
    threaded: bool = True  # False: nothing is written until `JournalWriter.step` is called


REAL = Storage()


class Journal:
    """The journal at ``path``, whose directory is made.

    ``epoch`` is larger than in any run before, and ``secret`` is the same in all runs; nobody else
    knows it.  ``durations`` is the history as it was, and
    ``drained_workers`` are those that an operator wants to get nothing.  ``first`` says that
    no broker has run before: no worker can be at anything for one.  ``wake`` is called by the
    thread whenever ``kept`` has grown, or `look` has news.  If it is not ``needed``, nobody comes
    back to what was promised, and all goes on without a file that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None],
        wake: Callable[[], None] = lambda: None,
        *,
        needed: bool = True,
        storage: Storage = REAL,
    ) -> None:
        """MachineFault if the file cannot be used, and is needed or has something in it."""
        self._clock = storage.clock
        self._connect = storage.connect
        self._path = path
        self._warn = warn
        self._needed = needed
        self._set_aside: set[bytes] = set()  # requests of which a record is no good
        self._statements: list[Statement] = []  # not given to the writer yet,
        self._attempts: list[object] = []  # nor are these,
        self._durations: list[object] = []  # and these
        #: promises made so far
        self.appended = 0
        #: why nothing can be written, and so nothing is to be promised; "" if it can
        self.error = ""
        #: requests of which not all is on the disk: how many promises are to be kept for all of it,
        #: and for its beginning; in the order of the former
        self._undurable: dict[str, tuple[int, int]] = {}
        self._restored: set[str] = set()  # requests that the file says are not over
        self.durations: Durations = {}
        self.drained_workers: frozenset[str] = frozenset()
        self.epoch = int(self._clock())
        self.secret = storage.random(32)
        self.first = True
        self._db = self._open(path, needed=needed)
        self.writer = JournalWriter(
            self._db, path,
            warn=warn, wake=wake, prune=self._prune, needed=needed, threaded=storage.threaded,
        )  # fmt: skip

    @property
    def durable(self) -> int:
        """How many promises are on the disk."""
        return self.writer.durable

    # -- what is remembered --------------------------------------------------------------------

    def learned(self, what: Learned) -> None:
        """A build took this long."""
        self._durations += (what.kind, what.name, what.arch, what.seconds, self._clock())

    def ended(self, what: Ended) -> None:
        """An attempt ended."""
        outcome = what.outcome
        values = ("lost", 0.0, "")
        if outcome is not None:
            values = (outcome.result, outcome.seconds, outcome.message)
        self._attempts += (what.key, what.fence, what.worker, what.kind, what.name, what.arch)
        self._attempts += (*values, self._clock())

    def opened(self, what: Opened) -> None:
        """A request began."""
        if what.request in self._restored:  # it stands there
            self._restored.remove(what.request)
            return
        intent = what.intent
        row = (what.request, what.title, intent.requester, _encode(intent), self._clock())
        self._append(_OPENED, row, what.request)

    def closed(self, outcome: Update) -> None:
        """A request is over, and this is how."""
        states = [step.state for step in outcome.steps]
        ended = (states.count("done"), states.count("cached"), states.count("failed"))
        values = (outcome.state, self._clock(), outcome.message, *ended, len(states))
        self._append(_CLOSED, (*values, _encode(outcome), outcome.request), outcome.request)

    def forgotten(self, request: str) -> None:
        """A request is over, and whoever asks for it again means a new one."""
        self._append(_DELETE, (request,), request)

    def drained(self, what: Drained) -> None:
        """An operator's wish about a worker."""
        self._append(_DRAINED if what.on else _RESUMED, (what.worker,))

    def _append(self, statement: str, row: tuple[object, ...], request: str = "") -> None:
        self.appended += 1
        self._statements.append((statement, row))
        if request:
            _, begun = self._undurable.pop(request, (0, 0))
            if statement is not _CLOSED:
                begun = self.appended if statement is _OPENED else 0
            self._undurable[request] = (self.appended, begun)

    def flush(self) -> None:
        """Have written what was told since the last time.  Never waits."""
        if self._statements or self._attempts or self._durations:
            histories = {_ATTEMPT: self._attempts, _DURATION: self._durations}
            self.writer.write(self._statements, histories)
            self._statements, self._attempts, self._durations = [], [], []

    def update_status(self) -> list[str]:
        """See how writing goes, and set ``trouble``.

        Returns requests whose beginning cannot be written, each once: nobody was to hear of them
        yet, and nobody may.
        """
        self.error = self.writer.error
        while self._undurable:
            request, (appended, _) = next(iter(self._undurable.items()))
            if appended > self.durable:
                break
            del self._undurable[request]
        if not self.error:
            return []
        lost = [request for request, (_, begun) in self._undurable.items() if begun > self.durable]
        for request in lost:
            self._undurable[request] = (self._undurable[request][0], 0)
        return lost

    def is_durable(self, request: str) -> bool:
        """Whether all is on the disk of what was said of a request, as of the last `look`."""
        return request not in self._undurable

    def stored_requests(self) -> list[StoredRequest]:
        """What is written of requests: those that are over, then those that are not, oldest first.

        One that cannot be read is set aside.  To be called before anything is written.
        """
        found = []
        for id, requester, opened, goes_on, written in self._db.execute(_STORED).fetchall():
            if id in self._set_aside:
                continue
            try:
                event = self._event(id, requester, opened, written, goes_on=goes_on)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                self.set_aside(id, written, error)
                continue
            if goes_on:
                self._restored.add(id.decode())
            found.append(StoredRequest(id, written, event))
        return found

    def _event(
        self, id: bytes, requester: object, opened: float, written: bytes, *, goes_on: bool
    ) -> Remembered | BuildOrder | BuildGraph:
        """MsgspecError, TypeError or ValueError if the row is damaged."""
        if goes_on:
            intent: BuildOrder | BuildGraph = _decode_intent(written)
            request = intent.request
        else:
            outcome = _decode_outcome(written)
            request = outcome.request
            if outcome.state not in ("done", "failed", "cancelled"):
                raise ValueError(f"it is over, and {outcome.state}")
        if request.encode() != id:
            raise ValueError(f"it is of request {request}")
        if goes_on:
            return intent
        return Remembered(outcome, str(requester), max(0.0, self._clock() - opened))

    def set_aside(self, id: bytes, written: object, error: Exception) -> None:
        """Move what is written of a request out of the way, into a file; the error says why."""
        self._set_aside.add(id)
        self._restored.discard(id.decode(errors="replace"))
        data = written if isinstance(written, bytes) else repr(written).encode()
        digest = hashlib.sha256(id + data).hexdigest()[:16]
        file = self._path.with_name(f"{self._path.name}.request-{digest}")
        try:
            write_private(file, data)
            self._db.execute(_DELETE_BY_BYTES, (id,))
            then = f"is set aside, in {file}"
        except (OSError, sqlite3.Error) as failure:
            then = f"stays where it is: {failure}"
        name = id.decode(errors="backslashreplace")
        why = f"{type(error).__name__}: {error}"
        self._warn(f"request {name} cannot be taken up again, and {then}: {why}")

    def close(self, timeout: float = PATIENCE) -> None:
        """Write what is left."""
        self.flush()
        self.writer.close(timeout)

    # -- opening -------------------------------------------------------------------------------

    def _open(self, path: Path, *, needed: bool) -> sqlite3.Connection:
        for attempt in range(2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return self._read(self._connect(str(path)))
            except (sqlite3.OperationalError, OSError) as error:
                self.first = False  # for all that is known
                wrong = error_text(path, error)
                needed |= is_full(error) and path.exists()
                break
            except sqlite3.DatabaseError as error:
                self.first = False
                wrong = error_text(path, error)
                if attempt:
                    break
                aside = path.with_name(f"{path.name}.damaged-{int(self._clock())}")
                self._warn(f"{wrong}; moved to {aside.name}, beginning a new one")
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.rename(aside)
        if needed:
            raise MachineFault(f"without the journal, what was ordered would be forgotten: {wrong}")
        self._warn(f"{wrong}; going on without a journal")
        return self._read(self._connect(":memory:"))

    def _read(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                text = f"it has version {version}, not {VERSION}; move it away to begin anew"
                raise sqlite3.OperationalError(text)
            if version == 1:  # its requests could not be taken up again
                db.execute("DROP TABLE requests")
            if version < VERSION:
                db.executescript(_SCHEMA)
            with transaction(db):
                last = db.execute("SELECT max(epoch) FROM epochs").fetchone()[0]
                self.first = self.first and last is None
                # The clock only serves to go on above a journal that was lost.
                self.epoch = int(self._clock())
                if last is not None and 0 <= last < _EPOCHS:
                    self.epoch = last + 1
                db.execute("DELETE FROM epochs")
                db.execute("INSERT INTO epochs VALUES (?)", (self.epoch,))
                stored = db.execute("SELECT secret FROM secrets").fetchone()
                if stored is not None and isinstance(stored[0], bytes) and len(stored[0]) == 32:
                    self.secret = stored[0]
                else:
                    db.execute("DELETE FROM secrets")
                    db.execute("INSERT INTO secrets VALUES (?)", (self.secret,))
            drained = db.execute("SELECT worker FROM drained WHERE typeof(worker) = 'text'")
            self.drained_workers = frozenset(row[0] for row in drained)
            rows = db.execute(_DURATIONS, (LONGEST,))
            self.durations = {(kind, name, arch): seconds for kind, name, arch, seconds in rows}
        except sqlite3.Error:
            db.close()
            raise
        return db

    # -- in the writer's thread ------------------------------------------------------------------

    def _prune(self) -> None:
        """Drop what is old."""
        with contextlib.suppress(sqlite3.Error), transaction(self._db):  # another time, then
            if not self._needed:  # else each is taken up, however old a clock makes it
                self._db.execute(
                    "DELETE FROM requests WHERE state = 'open' AND opened < ?",
                    (self._clock() - ABANDONED,),
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
