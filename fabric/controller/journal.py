"""Keeps requests, finished attempts and build durations over restarts of the broker.

`fabric.controller.journal_writer` writes the entries in batches and fsyncs each.  Entries on which
replies depend (a request was accepted or is over, a worker is drained) are written at once; the
reply is sent when ``durable`` has reached the entry.  Other entries are gathered, and a crash loses
at most a quarter of a second of them.  Work in flight is not recorded: workers report it.

While the file cannot be written, ``error`` contains the reason: the broker accepts no requests and
commands, and writes the ends of builds as soon as that is possible.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from fabric.controller.history import EndedAttempt
from fabric.controller.journal_file import (
    PATIENCE,
    Storage,
    open_journal,
    prune,
    stored_attempts,
)
from fabric.controller.journal_writer import JournalWriter, Statement
from fabric.scheduling.events import Drained, Learned, Opened, Remembered
from fabric.wire.messages import BuildGraph, BuildOrder, Update

_DURATION = "INSERT OR REPLACE INTO durations VALUES (?, ?, ?, ?, ?)"
_ATTEMPT = (
    "INSERT INTO attempts (key, fence, worker, kind, name, arch, result, seconds, message, at,"
    " number, lasted, phases) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OPENED = (
    "INSERT INTO requests (id, title, requester, intent, state, opened)"
    " VALUES (?, ?, ?, ?, 'open', ?)"
    " ON CONFLICT DO UPDATE SET state = 'open', intent = excluded.intent"
)
_CLOSED = (
    "UPDATE requests SET intent = NULL, state = ?, closed = ?, message = ?, done = ?, cached = ?,"
    " failed = ?, total = ?, outcome = ? WHERE id = ?"
)
#: The id as bytes, because it may be damaged.
_STORED = (
    "SELECT CAST(id AS BLOB), requester, opened, closed, state = 'open' AS goes_on,"
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


class StoredRequest(NamedTuple):
    """A request in the journal, and the event that restores it in the core."""

    id: bytes
    data: object  # the encoded intent or outcome
    event: Remembered | BuildOrder | BuildGraph
    ago: float  # seconds since it began


class Journal:
    """The journal at ``path``.

    ``epoch`` is larger than in any run before.  ``secret`` is 32 bytes that are the same in all
    runs and that only the broker knows.  ``durations`` and ``drained_workers`` are as the file has
    them when it is opened.  ``first``: no broker has used this file, so no worker can be busy for
    one.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None],
        wake: Callable[[], None] = lambda: None,
        *,
        needed: bool = True,
        storage: Storage = Storage(),  # noqa: B008 - immutable
    ) -> None:
        """``wake`` is called in the writer's thread when ``durable`` or ``error`` has changed.

        If the journal is not ``needed``, a broker goes on without a file that cannot be used.
        MachineFault if it is needed, or has contents.
        """
        self._clock = storage.clock
        self._path = path
        self._warn = warn
        self._needed = needed
        #: statements and rows that the writer does not have yet
        self._statements: list[Statement] = []
        self._attempts: list[object] = []
        self._durations: list[object] = []
        #: number of statements appended so far
        self.appended = 0
        #: why nothing can be written; "" if it can
        self.error = ""
        #: Requests that are not durable: numbers of the last statement of each and of that which
        #: opened it, 0 if that does not matter; in the order of the former.
        self._undurable: dict[str, tuple[int, int]] = {}
        self._set_aside: set[bytes] = set()
        self._restored: set[str] = set()  # open requests of the file
        file = open_journal(path, storage, warn, needed=needed)
        self._db = file.db
        self.first = file.first
        self.epoch = file.epoch
        self.secret = file.secret
        self.durations = file.durations
        self.drained_workers = file.drained
        self.writer = JournalWriter(
            file.db, path,
            warn=warn, wake=wake, prune=self._prune, needed=needed, threaded=storage.threaded,
        )  # fmt: skip

    @property
    def durable(self) -> int:
        """Number of statements that are on the disk; all, if the journal is not needed."""
        return self.writer.durable if self._needed else self.appended

    # -- appending -----------------------------------------------------------------------------

    def learned(self, event: Learned) -> None:
        """Append the duration of a build."""
        self._durations += (event.kind, event.name, event.arch, event.seconds, self._clock())

    def ended(self, one: EndedAttempt) -> None:
        """Append the end of an attempt."""
        self._attempts += (one.key, one.fence, one.worker, one.kind, one.name, one.arch)
        self._attempts += (one.result, one.took, one.message, self._clock())
        self._attempts += (one.number, one.ended - one.began, one.phases)

    def opened(self, event: Opened) -> None:
        """Append the beginning of a request, unless the file has it."""
        if event.request in self._restored:
            self._restored.remove(event.request)
            return
        intent = event.intent
        row = (event.request, event.title, intent.requester, _encode(intent), self._clock())
        self._append(_OPENED, row, event.request)

    def closed(self, outcome: Update) -> None:
        """Append the end of a request."""
        states = [step.state for step in outcome.steps]
        ended = (states.count("done"), states.count("cached"), states.count("failed"))
        values = (outcome.state, self._clock(), outcome.message, *ended, len(states))
        self._append(_CLOSED, (*values, _encode(outcome), outcome.request), outcome.request)

    def forgotten(self, request: str) -> None:
        """Delete a request: the same id may be used for a new one."""
        self._append(_DELETE, (request,), request)

    def drained(self, event: Drained) -> None:
        """Append that a worker is drained, or not any more."""
        self._append(_DRAINED if event.on else _RESUMED, (event.worker,))

    def _append(self, statement: str, row: tuple[object, ...], request: str = "") -> None:
        self.appended += 1
        self._statements.append((statement, row))
        if request:
            _, begun = self._undurable.pop(request, (0, 0))
            if statement is not _CLOSED:
                begun = self.appended if statement is _OPENED else 0
            self._undurable[request] = (self.appended, begun)

    def flush(self) -> None:
        """Hand all appended entries to the writer.  Never waits."""
        if self._statements or self._attempts or self._durations:
            histories = {_ATTEMPT: self._attempts, _DURATION: self._durations}
            self.writer.write(self._statements, histories)
            self._statements, self._attempts, self._durations = [], [], []

    def update_status(self) -> list[str]:
        """Take over ``error`` and ``durable`` of the writer.

        Returns the requests whose beginning cannot be written, each once: no reply about them was
        sent, and none must be.
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
        """Whether all entries of a request were on the disk at the last `update_status`."""
        return request not in self._undurable

    # -- restoring -----------------------------------------------------------------------------

    def stored_requests(self) -> list[StoredRequest]:
        """The requests in the file: those that are over, then the open ones, oldest first.

        Damaged ones are set aside.  Call it before anything is appended.
        """
        found = []
        for id, requester, opened, closed, goes_on, data in self._db.execute(_STORED).fetchall():
            if id in self._set_aside:
                continue
            try:
                ago = max(0.0, self._clock() - opened)
                ended = 0.0 if goes_on else min(ago, max(0.0, self._clock() - closed))
                event = self._event(id, requester, ago, ended, data, goes_on=goes_on)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                self.set_aside(id, data, error)
                continue
            if goes_on:
                self._restored.add(id.decode())
            found.append(StoredRequest(id, data, event, ago))
        return found

    def _event(
        self, id: bytes, requester: object, ago: float, ended: float, data: bytes, *, goes_on: bool
    ) -> Remembered | BuildOrder | BuildGraph:
        """MsgspecError, TypeError or ValueError if the row is damaged."""
        if goes_on:
            intent: BuildOrder | BuildGraph = _decode_intent(data)
            request = intent.request
        else:
            outcome = _decode_outcome(data)
            request = outcome.request
            if outcome.state not in ("done", "failed", "cancelled"):
                raise ValueError(f"it is over, but its state is {outcome.state}")
        if request.encode() != id:
            raise ValueError(f"it is of request {request}")
        return intent if goes_on else Remembered(outcome, str(requester), ago, ended)

    def stored_attempts(self, now: float) -> Iterator[EndedAttempt]:
        """The attempts of former runs, oldest first, but for damaged ones.

        ``now`` is the time on the clock that their times are on.  Call it before anything is
        appended.
        """
        try:
            yield from stored_attempts(self._db, now - self._clock())
        except sqlite3.Error as error:
            self._warn(f"ended attempts cannot be read, and are not shown: {error}")

    def set_aside(self, id: bytes, data: object, error: Exception) -> None:
        """Move a request that cannot be restored into a file beside the journal."""
        self._set_aside.add(id)
        self._restored.discard(id.decode(errors="replace"))
        content = data if isinstance(data, bytes) else repr(data).encode()
        digest = hashlib.sha256(id + content).hexdigest()[:16]
        file = self._path.with_name(f"{self._path.name}.request-{digest}")
        try:
            _write_private(file, content)
            self._db.execute(_DELETE_BY_BYTES, (id,))
            then = f"is set aside, in {file}"
        except (OSError, sqlite3.Error) as failure:
            then = f"stays where it is: {failure}"
        name = id.decode(errors="backslashreplace")
        why = f"{type(error).__name__}: {error}"
        self._warn(f"request {name} cannot be taken up again, and {then}: {why}")

    def close(self, timeout: float = PATIENCE) -> None:
        """Write the pending entries; wait at most ``timeout`` seconds."""
        self.flush()
        self.writer.close(timeout)

    def _prune(self) -> None:
        """Called in the writer's thread."""
        prune(self._db, self._clock(), restores=self._needed)


def _write_private(file: Path, data: bytes) -> None:
    """Write a file with mode 0600."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        output.write(data)
