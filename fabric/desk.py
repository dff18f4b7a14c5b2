"""The broker's helper for whatever may take long: a thread that asks the artifact store.

The broker's loop puts questions here and goes on; answers are fetched when the wake-up comes.
Questions that wait together are asked together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fabric import bounds
from fabric.scheduling.events import Answered, Ask, Inspected, Unanswered
from fabric.wire.messages import LogPiece, LogRead, Refused

if TYPE_CHECKING:
    from fabric.jobs import Blob
    from fabric.trove.store import Store

#: Logs whose place in the store is remembered.
LOGS_KNOWN = 100


class Desk:
    """Asks the store, one batch of questions after another."""

    def __init__(self, open_store: Callable[[], Store], wake: Callable[[], None]) -> None:
        """``open_store`` is called in the thread; ``wake`` after each batch of answers."""
        self._open_store = open_store
        self._wake = wake
        self._questions: SimpleQueue[Any] = SimpleQueue()
        self._answers: deque[Answered | Unanswered | Inspected] = deque()
        self._pieces: deque[tuple[bytes, LogPiece | Refused]] = deque()
        self._store: Store | None = None
        self._logs: dict[str, Blob | None] = {}
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    def ask(self, questions: list[Ask]) -> None:
        """Which keys are there?  Answered by `answers`."""
        self._questions.put(questions)

    def read_log(self, peer: bytes, wanted: LogRead) -> None:
        """A range of the log of a finished step.  Answered by `pieces`, for that peer."""
        self._questions.put((peer, wanted))

    def inspect(self, keys: tuple[str, ...]) -> None:
        """Read all of these artifacts, and forget what is damaged.  Answered by `answers`.

        It may take long, and has a thread of its own.
        """
        threading.Thread(target=self._inspect, args=(keys,), name="inspection", daemon=True).start()

    def answers(self) -> Iterator[Answered | Unanswered | Inspected]:
        """Answers that have come, each once."""
        while self._answers:
            yield self._answers.popleft()

    def pieces(self) -> Iterator[tuple[bytes, LogPiece | Refused]]:
        """Pieces of logs that have come, each once, and for whom."""
        while self._pieces:
            yield self._pieces.popleft()

    def close(self, timeout: float = 0.02) -> None:
        """End the thread; one that waits for a store that does not answer is left behind."""
        self._questions.put(None)
        self._thread.join(timeout)

    # -- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch = [self._questions.get()]
            while not self._questions.empty():
                batch.append(self._questions.get())
            asks = [ask for each in batch if isinstance(each, list) for ask in each]
            if asks:
                self._look_up(asks)
                self._wake()
            for each in batch:
                if each is None:
                    return
                if isinstance(each, tuple):
                    self._pieces.append((each[0], self._piece(each[1])))
                    self._wake()

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _look_up(self, asks: list[Ask]) -> None:
        keys = list(dict.fromkeys(key for ask in asks for key in ask.keys))
        try:
            found = frozenset(self._opened().has(keys))
            self._opened().use(found)
        except Exception as error:  # noqa: BLE001 - any failure of a store is an answer
            for ask in asks:
                self._answers.append(Unanswered(ask.question, str(error) or repr(error)))
            return
        for ask in asks:
            self._answers.append(Answered(ask.question, found.intersection(ask.keys)))

    def _piece(self, wanted: LogRead) -> LogPiece | Refused:
        try:
            if wanted.key not in self._logs:
                manifest = self._opened().manifest(wanted.key)
                if len(self._logs) >= LOGS_KNOWN:
                    self._logs.clear()
                self._logs[wanted.key] = manifest.log if manifest else None
            log = self._logs[wanted.key]
            if log is None:
                del self._logs[wanted.key]
                return Refused(wanted.key, "no-log", "no log of it is kept here")
            length = max(0, min(wanted.length, bounds.LOG_RANGE, log.size - wanted.offset))
            data = self._opened().read(log, wanted.offset, length) if length else b""
        except Exception as error:  # noqa: BLE001 - any failure of a store is an answer
            return Refused(wanted.key, "no-log", f"its log cannot be read: {error}")
        return LogPiece(wanted.key, wanted.fence, wanted.offset, data, log.size, log.sha256)

    # -- in another thread ---------------------------------------------------------------------

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
            failure = str(error) or repr(error)
        self._answers.append(Inspected(frozenset(gone), failure))
        self._wake()
