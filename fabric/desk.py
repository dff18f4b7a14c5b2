"""The broker's helper for whatever may take long: threads that ask the artifact store.

The broker's loop puts questions here and goes on; answers are fetched when the wake-up comes.
What the core asks, what initiators read of logs, and inspections each have a thread of their own,
so that none waits for another.  Questions of the core that wait together are asked together; those
who read logs take turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from fabric import bounds
from fabric.scheduling.events import Answered, Ask, Inspected, Unanswered
from fabric.wire.messages import LogPiece, LogRead, Refused, cut

if TYPE_CHECKING:
    from fabric.jobs import Blob
    from fabric.trove.store import Store

#: Logs whose place in the store is remembered.
LOGS_KNOWN = 100
#: Pieces of logs that wait to be fetched, at most.
PIECES = 16


class _LogReads:
    """Ranges of logs that wait to be read.  Owners take turns."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[bytes, LogRead]]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, owner: str, peer: bytes, wanted: LogRead) -> None:
        """Dropped if it waits already, or too many of its owner's do: it is asked for again."""
        with self._changed:
            queue = self._waiting.setdefault(owner, deque())
            if len(queue) < bounds.LOG_READS and (peer, wanted) not in queue:
                queue.append((peer, wanted))
                self._changed.notify()

    def take(self) -> tuple[bytes, LogRead] | None:
        """The next one, as soon as there is one; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
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


class Desk:
    """Asks the store, one batch of questions after another."""

    def __init__(self, open_store: Callable[[], Store], wake: Callable[[], None]) -> None:
        """``open_store`` is called in each thread; ``wake`` after each batch of answers."""
        self._open_store = open_store
        self._wake = wake
        self._questions: SimpleQueue[list[Ask] | None] = SimpleQueue()
        self._answers: deque[Answered | Unanswered | Inspected] = deque()
        self._reads = _LogReads()
        self._pieces: deque[tuple[bytes, LogPiece | Refused]] = deque()
        self._room = threading.Semaphore(PIECES)  # for more of them
        self._inspections: SimpleQueue[tuple[str, ...] | None] = SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}
        self._begin("desk", self._run)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        """Have a thread for this; the one that there is, if there is."""
        if name not in self._threads:
            self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
            self._threads[name].start()

    def ask(self, questions: list[Ask]) -> None:
        """Which keys are there?  Answered by `answers`."""
        self._questions.put(questions)

    def read_log(self, owner: str, peer: bytes, wanted: LogRead) -> None:
        """A range of the log of a finished step.  Answered by `pieces`, for that peer.

        ``owner`` is whoever has this peer, and maybe others.
        """
        self._reads.put(owner, peer, wanted)
        self._begin("logs", self._read_logs)

    def inspect(self, keys: tuple[str, ...]) -> None:
        """Read all of these artifacts, and forget what is damaged.  Answered by `answers`."""
        self._inspections.put(keys)
        self._begin("inspections", self._inspect_all)

    def answers(self) -> Iterator[Answered | Unanswered | Inspected]:
        """Answers that have come, each once."""
        while self._answers:
            yield self._answers.popleft()

    def pieces(self) -> Iterator[tuple[bytes, LogPiece | Refused]]:
        """Pieces of logs that have come, each once, and for whom."""
        while self._pieces:
            yield self._pieces.popleft()
            self._room.release()

    def close(self, timeout: float = 0.02) -> None:
        """End the threads; one that waits for a store that does not answer is left behind."""
        self._questions.put(None)
        self._inspections.put(None)
        self._reads.close()
        for thread in self._threads.values():
            thread.join(timeout)

    # -- in the core's thread ----------------------------------------------------------------

    def _run(self) -> None:
        store = _Opened(self._open_store)
        while (first := self._questions.get()) is not None:
            asks = [*first]
            while not self._questions.empty():
                more = self._questions.get()
                if more is None:
                    return
                asks += more
            self._look_up(store, asks)
            self._wake()

    def _look_up(self, store: _Opened, asks: list[Ask]) -> None:
        keys = list(dict.fromkeys(key for ask in asks for key in ask.keys))
        try:
            found = frozenset(store.get().has(keys))
            store.get().use(found)
        except Exception as error:  # noqa: BLE001 - any failure of a store is an answer
            for ask in asks:
                self._answers.append(Unanswered(ask.question, _text(error)))
            return
        for ask in asks:
            self._answers.append(Answered(ask.question, found.intersection(ask.keys)))

    # -- in the thread for logs --------------------------------------------------------------

    def _read_logs(self) -> None:
        store = _Opened(self._open_store)
        known: dict[str, Blob] = {}
        while (taken := self._reads.take()) is not None:
            peer, wanted = taken
            piece = _piece(store, known, wanted)
            self._room.acquire()
            self._pieces.append((peer, piece))
            self._wake()

    # -- in the thread for inspections -------------------------------------------------------

    def _inspect_all(self) -> None:
        while (keys := self._inspections.get()) is not None:
            self._inspect(keys)

    def _inspect(self, keys: tuple[str, ...]) -> None:
        gone: set[str] = set()
        failure = ""
        try:
            store = self._open_store()  # another one, which has not verified anything yet
            for key in keys:
                if not store.inspect(key):
                    store.forget(key)
                    gone.add(key)
        except Exception as error:  # noqa: BLE001 - any failure of a store is an answer
            failure = _text(error)
        self._answers.append(Inspected(frozenset(gone), failure))
        self._wake()


class _Opened:
    """A store that is opened when it is needed first, and tried again if that fails."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open_store = open_store
        self._store: Store | None = None

    def get(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store


def _piece(store: _Opened, known: dict[str, Blob], wanted: LogRead) -> LogPiece | Refused:
    """A range of a log; ``known`` are the logs of some keys."""
    try:
        if wanted.key not in known:
            manifest = store.get().manifest(wanted.key)
            if manifest is None or manifest.log is None:
                return Refused(wanted.key, "no-log", "no log of it is kept here")
            if len(known) >= LOGS_KNOWN:
                known.clear()
            known[wanted.key] = manifest.log
        log = known[wanted.key]
        length = max(0, min(wanted.length, bounds.LOG_RANGE, log.size - wanted.offset))
        data = store.get().read(log, wanted.offset, length) if length else b""
    except Exception as error:  # noqa: BLE001 - any failure of a store is an answer
        return Refused(wanted.key, "no-log", f"its log cannot be read: {_text(error)}")
    return LogPiece(wanted.key, wanted.fence, wanted.offset, data, log.size, log.sha256)


def _text(error: Exception) -> str:
    return cut(str(error) or repr(error))
