"""Opens the SQLite file of the journal, and prunes it.

Several brokers can share a file.  A damaged file is moved aside, and a new one begins.  A file that
cannot be opened is an error, because a broker without it would forget what it has accepted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from fabric import bounds
from fabric.controller.history import EndedAttempt, phases_of
from fabric.errors import NO_ROOM, MachineFault
from fabric.scheduling.model import Durations
from fabric.wire.messages import Update

#: Version of the file's tables.
VERSION = 4
#: Requests that are over, and their steps, that are kept.
REQUESTS_KEPT = 200
STEPS_KEPT = 100_000
#: Seconds after which an open request is dropped if no broker restores requests.
ABANDONED = 30 * 86400.0
#: Longest duration of a build that is not taken for damage, in seconds.
LONGEST = 1e9
#: Seconds to wait for another broker's transaction.
PATIENCE = 2.0
#: Smallest epoch that is taken for damage.
_EPOCHS = 2**32
#: Error codes of SQLite and of the system that a full disk can cause.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_NO_ROOM = (*NO_ROOM, errno.EFBIG)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS durations (
    kind TEXT, name TEXT, arch TEXT, seconds REAL, at REAL,
    PRIMARY KEY (kind, name, arch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT, fence INTEGER, worker TEXT, kind TEXT, name TEXT, arch TEXT,
    result TEXT, seconds REAL, message TEXT, at REAL, number INTEGER, lasted REAL, phases BLOB);
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, title TEXT, requester TEXT, intent BLOB, state TEXT, opened REAL,
    closed REAL, message TEXT, done INTEGER, cached INTEGER, failed INTEGER, total INTEGER,
    outcome BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secrets (secret BLOB);
CREATE TABLE IF NOT EXISTS drained (worker TEXT PRIMARY KEY) WITHOUT ROWID
"""
#: Columns of attempts that a file of version 3 lacks.
_NEW = {"number": "INTEGER", "lasted": "REAL", "phases": "BLOB"}
_BUILDS = (
    "SELECT id, title, requester, opened, closed, outcome FROM requests"
    " WHERE outcome IS NOT NULL ORDER BY closed"
)
_decode = msgspec.msgpack.Decoder(Update).decode
#: In the order of the fields of `EndedAttempt`.
_ATTEMPTS = (
    "SELECT coalesce(number, rowid) AS place, key, fence, worker, kind, name, arch, result,"
    " message, seconds, at - coalesce(lasted, seconds), at, coalesce(phases, x'') FROM attempts"
    " ORDER BY place DESC LIMIT ?"
)
#: A value of another type is damaged.
_DURATIONS = (
    "SELECT kind, name, arch, seconds FROM durations WHERE typeof(seconds) IN ('real', 'integer')"
    " AND seconds BETWEEN 0 AND ? AND typeof(kind) = 'text' AND typeof(name) = 'text'"
    " AND typeof(arch) = 'text'"
)


def connect(path: str) -> sqlite3.Connection:
    """A connection whose transactions are on the disk when they end."""
    if path != ":memory:":  # it holds a secret, and so do the files that SQLite puts beside it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda text: text.decode(errors="replace")
    try:
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            with contextlib.suppress(sqlite3.OperationalError):  # another broker does it now
                db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        db.close()
        raise
    return db


class Storage(NamedTuple):
    """The surroundings of a journal."""

    clock: Callable[[], float] = time.time  # seconds since 1970
    connect: Callable[[str], sqlite3.Connection] = connect
    random: Callable[[int], bytes] = os.urandom
    threaded: bool = True  # False: nothing is written until `JournalWriter.step` is called


class JournalFile(NamedTuple):
    """An open journal, and its contents but for the requests."""

    db: sqlite3.Connection
    first: bool  # no run of a broker has used this file
    epoch: int  # of this run; larger than that of any run before
    secret: bytes  # the same in all runs
    durations: Durations
    drained: frozenset[str]  # names of drained workers


def open_journal(
    path: Path, storage: Storage, warn: Callable[[str], None], *, needed: bool
) -> JournalFile:
    """Opens or makes the journal at ``path``, and its directory.

    A file that is not ``needed`` and cannot be used is replaced by one in memory.  MachineFault if
    a file that is needed cannot be used, or one with contents cannot because the disk is full.
    """
    secret = storage.random(32)
    problem = ""
    for attempt in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = storage.connect(str(path))
            return _read(db, storage, secret, first=not problem, needed=needed)
        except (sqlite3.OperationalError, OSError) as error:
            problem = error_text(path, error)
            needed |= is_full(error) and path.exists()
            break
        except sqlite3.DatabaseError as error:
            problem = error_text(path, error)
            if attempt:
                break
            aside = path.with_name(f"{path.name}.damaged-{int(storage.clock())}")
            warn(f"{problem}; moved to {aside.name}, beginning a new one")
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.rename(aside)
    if needed:
        raise MachineFault(f"without the journal, what was ordered would be forgotten: {problem}")
    warn(f"{problem}; going on without a journal")
    return _read(storage.connect(":memory:"), storage, secret, first=False, needed=False)


def _read(
    db: sqlite3.Connection, storage: Storage, secret: bytes, *, first: bool, needed: bool
) -> JournalFile:
    try:
        if not needed:  # a power cut may lose its last entries, and nothing waits for the disk
            db.execute("PRAGMA synchronous = NORMAL")
        if _version(db) < VERSION:
            _migrate(db)
        with transaction(db):
            last = db.execute("SELECT max(epoch) FROM epochs").fetchone()[0]
            # A new journal begins with the time, so that its epoch exceeds those of a lost one.
            epoch = int(storage.clock())
            if last is not None and 0 <= last < _EPOCHS:
                epoch = last + 1
            db.execute("DELETE FROM epochs")
            db.execute("INSERT INTO epochs VALUES (?)", (epoch,))
            stored = db.execute("SELECT secret FROM secrets").fetchone()
            if stored is not None and isinstance(stored[0], bytes) and len(stored[0]) == 32:
                secret = stored[0]
            else:
                db.execute("DELETE FROM secrets")
                db.execute("INSERT INTO secrets VALUES (?)", (secret,))
        drained = db.execute("SELECT worker FROM drained WHERE typeof(worker) = 'text'")
        rows = db.execute(_DURATIONS, (LONGEST,))
        return JournalFile(
            db=db,
            first=first and last is None,
            epoch=epoch,
            secret=secret,
            durations={(kind, name, arch): seconds for kind, name, arch, seconds in rows},
            drained=frozenset(row[0] for row in drained),
        )
    except sqlite3.Error:
        db.close()
        raise


def _version(db: sqlite3.Connection) -> int:
    """The version of the file; sqlite3.OperationalError if it is later than this program's."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        text = f"it has version {version}, not {VERSION}; move it away to begin anew"
        raise sqlite3.OperationalError(text)
    return version


def _migrate(db: sqlite3.Connection) -> None:
    """Make or change the tables, all or none; another broker may do the same at this time."""
    with transaction(db):
        version = _version(db)
        if version == 1:  # no later version can restore its requests
            db.execute("DROP TABLE requests")
        columns = {column for _, column, *_ in db.execute("PRAGMA table_info(attempts)")}
        for column, kind in _NEW.items() if columns else ():
            if column not in columns:
                db.execute(f"ALTER TABLE attempts ADD COLUMN {column} {kind}")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")


def stored_attempts(db: sqlite3.Connection, ahead: float) -> Iterator[EndedAttempt]:
    """The last attempts in the file, oldest first, but for damaged ones.

    Their times are seconds since 1970, plus ``ahead``.  sqlite3.Error if the file cannot be read.
    """
    for row in reversed(db.execute(_ATTEMPTS, (bounds.ATTEMPTS_KEPT,)).fetchall()):
        with contextlib.suppress(msgspec.MsgspecError):
            attempt = msgspec.convert(row, EndedAttempt)
            phases_of(attempt)
            began, ended = attempt.began + ahead, attempt.ended + ahead
            yield msgspec.structs.replace(attempt, began=began, ended=ended)


class StoredBuild(NamedTuple):
    """A build that is over, in a journal.  Times are seconds since 1970."""

    request: str
    title: str
    requester: str
    opened: float
    closed: float
    outcome: Update
    path: Path

    def attempts(self) -> list[EndedAttempt]:
        """The attempts that ended since it began, and began before it ended."""
        with _reading(self.path) as db:
            attempts = list(stored_attempts(db, 0.0))
        return [one for one in attempts if one.began <= self.closed and one.ended >= self.opened]


def stored_builds(path: Path) -> list[StoredBuild]:
    """The builds in the journal at ``path`` that are over, in the order of their ends.

    Empty if there is no journal.  MachineFault if it cannot be read.
    """
    if not path.exists():
        return []
    with _reading(path) as db:
        rows = db.execute(_BUILDS).fetchall()
    found = []
    for *facts, outcome in rows:
        with contextlib.suppress(msgspec.MsgspecError, TypeError):
            known = msgspec.convert(facts, tuple[str, str, str, float, float])
            found.append(StoredBuild(*known, _decode(outcome), path))
    return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal that a broker may use at the same time."""
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=PATIENCE)
        with contextlib.closing(db):
            if _version(db) < VERSION:
                text = "an older version wrote it; the next build brings it up to date"
                raise sqlite3.OperationalError(text)
            yield db
    except sqlite3.Error as error:
        raise MachineFault(error_text(path, error)) from None


def prune(db: sqlite3.Connection, now: float, *, restores: bool) -> None:
    """Drop old history.  A failure is ignored: the next call repeats it.

    ``restores``: a broker restores every open request, so none is dropped for its age.
    """
    with contextlib.suppress(sqlite3.Error), transaction(db):
        if not restores:
            db.execute(
                "DELETE FROM requests WHERE state = 'open' AND opened < ?", (now - ABANDONED,)
            )
        db.execute(
            "DELETE FROM attempts WHERE rowid <= (SELECT max(rowid) FROM attempts) - ?",
            (bounds.ATTEMPTS_KEPT,),
        )
        db.execute(
            "DELETE FROM requests WHERE id IN (SELECT id FROM ("
            " SELECT id, row_number() OVER newest AS place, sum(total) OVER newest AS steps"
            " FROM requests WHERE state <> 'open'"
            " WINDOW newest AS (ORDER BY closed DESC ROWS UNBOUNDED PRECEDING))"
            " WHERE place > ? OR (steps > ? AND place > 1))",
            (REQUESTS_KEPT, STEPS_KEPT),
        )


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All statements inside are written, or none.  sqlite3.Error if they cannot be written."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def is_full(error: Exception) -> bool:
    """Whether a full disk may be the cause."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _FULL
    return getattr(error, "errno", 0) in _NO_ROOM


def error_text(path: Path, error: Exception) -> str:
    """What failed at a file, and what helps, if that is known."""
    text = getattr(error, "strerror", "") or error
    return f"{path}: {text}" + ("; make room on that disk" if is_full(error) else "")
