"""Queries the artifact store in threads, so that the broker's loop never waits for it.

The loop queues work, and fetches the results after a wake-up.  Queries of the core, log reads of
initiators, inspections, hints and countersignatures have a thread each, so that none waits for
another.  Waiting queries are combined into one; log reads of different owners take turns.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from fabric import bounds
from fabric.errors import DamagedError
from fabric.scheduling.events import (
    CompareStore,
    QueryStore,
    Result,
    StoreAnswered,
    StoreCompared,
    StoreFailed,
    StoreInspected,
)
from fabric.wire.messages import LogPiece, LogRead, Rejected, StepSpec, cut

if TYPE_CHECKING:
    from fabric.jobs import Blob, Job
    from fabric.trove.artifacts.contents import Contents, Recorded
    from fabric.trove.artifacts.store import Store

    Event = StoreAnswered | StoreCompared | StoreFailed | StoreInspected

T = TypeVar("T")

#: Logs whose blobs are remembered.
LOGS_KNOWN = 100
#: Seconds that hints and countersignatures have to be written when the broker ends.
HINTS_PATIENCE = 2.0
#: Most pieces of logs that wait for the loop.
PIECES = 16


class _LogReads:
    """A queue of log reads in which owners take turns.  Thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[bytes, LogRead]]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, owner: str, peer: bytes, wanted: LogRead) -> None:
        """Add a read; drop it if it waits already, or past `bounds.LOG_READS` of the owner."""
        with self._changed:
            queue = self._waiting.setdefault(owner, deque())
            if len(queue) < bounds.LOG_READS and (peer, wanted) not in queue:
                queue.append((peer, wanted))
                self._changed.notify()

    def take(self, *, wait: bool) -> tuple[bytes, LogRead] | None:
        """The next read; None after `close`, and without ``wait`` also if there is none."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed or not self._waiting:
                return None
            owner = next(iter(self._waiting))
            queue = self._waiting.pop(owner)
            found = queue.popleft()
            if queue:
                self._waiting[owner] = queue
            return found

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


#: Does the next piece of some work; with True it waits for one.  Returns False if there was none,
#: or after `StoreClient.close`.
Step = Callable[[bool], bool]


class Executor(Protocol):
    """Runs the steps of each kind of work."""

    def start(self, kind: str, step: Step) -> None:
        """Call ``step`` until it returns False; never two of a kind at the same time."""

    def close(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for each running step."""


class Threads:
    """An executor with a thread for each kind of work, started when there is some."""

    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}

    def start(self, kind: str, step: Step) -> None:
        if kind not in self._threads:
            thread = threading.Thread(target=self._work, args=(step,), name=kind, daemon=True)
            self._threads[kind] = thread
            thread.start()

    def close(self, timeout: float) -> None:
        """A thread that waits for a store without an answer is abandoned."""
        for kind, thread in self._threads.items():
            thread.join(HINTS_PATIENCE if kind in ("hints", "countersigning") else timeout)

    def _work(self, step: Step) -> None:
        while step(True):
            pass


class StoreClient:
    """Queries, log reads and inspections of the store."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        wake: Callable[[], None],
        executor: Executor | None = None,
        *,
        countersigns: bool = False,
    ) -> None:
        """``open_store`` and ``wake`` are called in the executor's threads, `Threads` by default.

        Each thread opens a store of its own, and calls ``wake`` after each result.  A broker
        ``countersigns`` if it knows its workers by their keys, and its store is signed.
        """
        self._countersigns = countersigns
        self._open_store = open_store
        self._wake = wake
        self._executor = executor or Threads()
        self._queries: SimpleQueue[list[QueryStore | CompareStore] | None] = SimpleQueue()
        self._answers: deque[Event] = deque()
        self._store = _Opened(open_store)  # for queries
        self._equals = _EqualSteps(self._store)
        self._hints: SimpleQueue[dict[str, str] | None] = SimpleQueue()
        self._hints_store = _Opened(open_store)
        # a store that answers no more answers no query either, so this does not grow
        self._verified: SimpleQueue[list[Result | str] | None] = SimpleQueue()
        self._countersigned = _Opened(open_store)
        self._reads = _LogReads()
        self._pieces: deque[tuple[bytes, LogPiece | Rejected]] = deque()
        self._slots = threading.Semaphore(PIECES)  # free places in _pieces
        self._logs = _Logs(_Opened(open_store))
        self._inspections: SimpleQueue[tuple[str, ...] | None] = SimpleQueue()
        self._closed = False

    def query(self, queries: list[QueryStore | CompareStore]) -> None:
        """Look up which keys the store has, or equal steps.  The results come from `answers`."""
        self._queries.put(queries)
        self._executor.start("queries", self._answer_queries)

    def read_log(self, owner: str, peer: bytes, wanted: LogRead) -> None:
        """Read a range of the log of a finished step.  The result comes from `pieces`.

        ``owner`` is the name in the key of ``peer``; several peers may have it.
        """
        self._reads.put(owner, peer, wanted)
        self._executor.start("logs", self._read_log)

    def inspect(self, keys: tuple[str, ...]) -> None:
        """Read all of these artifacts, and forget damaged ones.  The result is in `answers`."""
        self._inspections.put(keys)
        self._executor.start("inspections", self._inspect)

    def answers(self) -> Iterator[Event]:
        """Results of queries and inspections, each once."""
        while self._answers:
            yield self._answers.popleft()

    def pieces(self) -> Iterator[tuple[bytes, LogPiece | Rejected]]:
        """(peer, piece or rejection) for each finished log read, each once."""
        while self._pieces:
            yield self._pieces.popleft()
            self._slots.release()

    def close(self, timeout: float = 0.02) -> None:
        """End all work but that which waits for a store without an answer.

        Hints and countersignatures have `HINTS_PATIENCE` to be written.
        """
        self._closed = True
        self._queries.put(None)
        self._inspections.put(None)
        self._hints.put(None)
        self._verified.put(None)
        self._reads.close()
        self._executor.close(timeout)

    # -- in the executor's threads -----------------------------------------------------------

    def _answer_queries(self, wait: bool) -> bool:
        asks: list[QueryStore | CompareStore] = []
        while batch := _next(self._queries, wait=wait and not asks):
            asks += batch
        if asks:
            compared = [ask for ask in asks if isinstance(ask, CompareStore)]
            self._answers.extend(self._look_up([a for a in asks if isinstance(a, QueryStore)]))
            self._answers.extend(self._compare(compared) if compared else ())
            self._wake()
        return bool(asks) and not self._closed

    def _look_up(self, asks: list[QueryStore]) -> list[StoreAnswered | StoreFailed]:
        keys = list(dict.fromkeys(key for ask in asks for key in ask.keys))
        try:
            store = self._store.get()
            found = frozenset(store.has(keys))
            store.use(found)
        except Exception as error:  # noqa: BLE001 - the core handles every failure
            return [StoreFailed(ask.question, _text(error)) for ask in asks]
        known = self._known(asks, found)
        self._countersign([one for ask in asks for one in ask.results])
        return [
            StoreAnswered(ask.question, found.intersection(ask.keys), known.intersection(ask.keys))
            for ask in asks
        ]

    def _known(self, asks: list[QueryStore], found: frozenset[str]) -> frozenset[str]:
        """The keys of built steps whose outputs were known before."""
        built = [
            step
            for ask in asks
            for step in ask.built
            if step.key in found and step.kind != "stratum"
        ]
        if not built:
            return frozenset()
        recorded = self._equals.record(built)
        self._write(recorded.hints)
        return recorded.keys

    def _compare(self, asks: list[CompareStore]) -> list[StoreCompared]:
        """Look for equal steps, and store them."""
        found = self._equals.find([step for ask in asks for step in ask.steps])
        self._write(found.hints)
        self._countersign(sorted(found.keys))
        equal = [frozenset(step.key for step in ask.steps) & found.keys for ask in asks]
        return [StoreCompared(ask.question, keys) for ask, keys in zip(asks, equal, strict=True)]

    def _write(self, hints: dict[str, str]) -> None:
        if hints:
            self._hints.put(hints)
            self._executor.start("hints", self._write_hints)

    def _write_hints(self, wait: bool) -> bool:
        hints = _next(self._hints, wait=wait)
        while hints and (more := _next(self._hints, wait=False)):
            hints |= more
        if hints:
            with contextlib.suppress(Exception):  # a lost hint costs a build
                self._hints_store.get().put_hints(hints)
        return bool(hints) and not self._closed

    def _countersign(self, verified: Sequence[Result | str]) -> None:
        """Countersign results of attempts, and steps (keys) that were stored as equal to others."""
        if verified and self._countersigns and self._store.get().is_signed:
            self._verified.put(list(verified))
            self._executor.start("countersigning", self._write_countersignatures)

    def _write_countersignatures(self, wait: bool) -> bool:
        verified = _next(self._verified, wait=wait)
        for one in verified or ():
            with contextlib.suppress(Exception):  # `verify` tells which steps have none
                _countersign(self._countersigned.get(), one)
        return verified is not None

    def _read_log(self, wait: bool) -> bool:
        if not self._slots.acquire(wait):
            return False
        taken = self._reads.take(wait=wait)
        if taken is None:
            self._slots.release()
            return False
        peer, wanted = taken
        self._pieces.append((peer, self._logs.read(wanted)))
        self._wake()
        return True

    def _inspect(self, wait: bool) -> bool:
        keys = _next(self._inspections, wait=wait)
        if keys is None:
            return False
        gone: set[str] = set()
        failure = ""
        try:
            store = self._open_store()  # a new one, which has not cached any verification
            for key in keys:
                if not store.inspect(key):
                    store.forget(key)
                    self._equals.forget(key)
                    gone.add(key)
        except Exception as error:  # noqa: BLE001 - the core handles every failure
            failure = _text(error)
        self._answers.append(StoreInspected(frozenset(gone), failure))
        self._wake()
        return True


def _next(queue: SimpleQueue[T | None], *, wait: bool) -> T | None:
    """The next item; None after the end, and without ``wait`` also if there is none."""
    try:
        return queue.get(wait)
    except Empty:
        return None


def _countersign(store: Store, one: Result | str) -> None:
    from fabric.trove.artifacts.countersigned import countersign, countersign_equal
    from fabric.trust.countersignature import Countersignature

    if isinstance(one, str):
        countersign_equal(store, one)
    else:
        countersign(store, Countersignature(one.key, one.manifest, one.worker, one.fence))


class _Opened:
    """A store that is opened at its first use, and again after a failure."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open_store = open_store
        self._store: Store | None = None

    def get(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store


class _EqualSteps:
    """Looks for steps with equal contents.  A failure costs a build, so none is reported."""

    def __init__(self, store: _Opened) -> None:
        self._store = store
        self._contents: Contents | None = None

    def record(self, steps: list[StepSpec]) -> Recorded:
        """Study built steps; ``keys`` are those whose outputs were known before."""
        with contextlib.suppress(Exception):
            return self._open().record(_jobs(steps))
        return _nothing()

    def find(self, steps: list[StepSpec]) -> Recorded:
        """Store steps as equal to some that the store has; ``keys`` are those that have one."""
        with contextlib.suppress(Exception):
            return self._open().find_equal(_jobs(steps))
        return _nothing()

    def forget(self, key: str) -> None:
        """A step is built again.  Any thread may call this."""
        if self._contents is not None:
            self._contents.forget(key)

    def _open(self) -> Contents:
        if self._contents is None:
            from fabric.trove.artifacts.contents import Contents

            self._contents = Contents(self._store.get())
        return self._contents


def _jobs(steps: list[StepSpec]) -> list[Job]:
    from fabric.jobs import Job

    return [msgspec.msgpack.decode(step.job, type=Job) for step in steps]


def _nothing() -> Recorded:
    from fabric.trove.artifacts.contents import Recorded

    return Recorded(frozenset(), {})


class _Logs:
    """Reads logs of finished steps."""

    def __init__(self, store: _Opened) -> None:
        self._store = store
        self._known: dict[str, Blob] = {}  # key -> its log

    def read(self, wanted: LogRead) -> LogPiece | Rejected:
        """A range of a log, or why it cannot be read."""
        try:
            log = self._known.get(wanted.key) or self._find(wanted.key)
            if log is None:
                return Rejected(wanted.key, "no-log", "the store has no log of it")
            length = max(0, min(wanted.length, bounds.LOG_RANGE, log.size - wanted.offset))
            data = self._store.get().read(log, wanted.offset, length) if length else b""
        except Exception as error:  # noqa: BLE001 - the peer gets every failure
            gone = isinstance(error, DamagedError)
            told = f"its log cannot be read: {_text(error)}"
            return Rejected(wanted.key, "no-log" if gone else "not-now", told)
        return LogPiece(wanted.key, wanted.fence, wanted.offset, data, log.size, log.sha256, True)

    def _find(self, key: str) -> Blob | None:
        manifest = self._store.get().manifest(key)
        if manifest is None or manifest.log is None:
            return None
        if len(self._known) >= LOGS_KNOWN:
            self._known.clear()
        self._known[key] = manifest.log
        return manifest.log


def _text(error: Exception) -> str:
    return cut(str(error) or repr(error))
