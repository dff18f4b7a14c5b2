"""Asks the controller, or the builds of this user on this machine, for all pages.

Equal questions that are asked at the same time are sent once, so many viewers of a page cost the
broker what one costs.  The broker gives a viewer 4 % of its time (`bounds.VIEWING`), and
drops what is more: an answer is therefore used again for a while that grows with the time it took,
and ranges of logs are read at a limited rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar

import msgspec

from fabric import bounds
from fabric.client.controller import PATIENCE
from fabric.client.running import folders
from fabric.config import Settings, WebSettings
from fabric.errors import FabricError, MachineFault
from fabric.web.asks import Heard
from fabric.web.broker_thread import BrokerThread
from fabric.wire.connection import Connection, dial
from fabric.wire.keys import Role
from fabric.wire.messages import PROTOCOL, Answer, LogPiece, LogRead, Published, Query
from fabric.wire.sockets import in_directory

T = TypeVar("T")
What: TypeAlias = Literal["requests", "workers", "why", "logs", "update", "graph", "attempts"]

ROLE: Role = "viewer"
#: Seconds that a caller waits while the broker is known to be away.
PATIENCE_AWAY = 1.0
#: Seconds between two looks for builds on this machine, and for whether the broker is away.
LOOK_EVERY = 0.5
#: Seconds that an answer is used for each second that it took, and at most.
REUSE = 20.0
REUSE_MOST = 10.0
#: Bytes of logs that are read from a controller in a second, and those that may be read at once: a
#: MiB costs the broker about a millisecond.
READ_RATE = 24 * bounds.MIB
READ_AT_ONCE = 96 * bounds.MIB


class Farm:
    """An asynchronous context manager; all methods belong to the loop in which it is entered."""

    def __init__(self, settings: Settings | WebSettings) -> None:
        self._settings = settings
        #: broker -> its connection; "" is the controller, others are folders of builds here
        self._brokers: dict[str, BrokerThread] = {}
        self._looked = float("-inf")
        self._asked: dict[object, asyncio.Task[Any]] = {}
        self._answers: dict[object, tuple[float, Heard]] = {}  # and until when they are used
        self._unread = float(READ_AT_ONCE)  # bytes of logs that may be read, at a time
        self._unread_at = time.monotonic()
        self._followers: dict[str, list[asyncio.Queue[Published]]] = {}
        #: fault of the controller, from its last answer; "" if there is none
        self.warning = ""

    async def __aenter__(self) -> Self:
        """FabricError if the settings lack what a connection needs."""
        if self._settings.controller:
            addresses, curve, name = dial(self._settings, ROLE)
            self._open(
                "", lambda wake: Connection(addresses, "follow", curve=curve, name=name, wake=wake)
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._asked.values()):
            task.cancel()
        await asyncio.gather(*(one.close() for one in self._brokers.values()))

    @property
    def where(self) -> str:
        """The controller's name; "" if the builds of this machine are shown."""
        return self._settings.controller

    @property
    def error(self) -> str:
        """Why the controller is silent; "" if it answers, or there is none."""
        return next((one.error for one in self._brokers.values() if one.error), "")

    async def query(self, what: What, about: str = "", seen: int = 0) -> Heard:
        """The answer to a query; of several builds on this machine, their answers in one.

        It may be some seconds old, if the broker needs long for it.  FabricError with the broker's
        reason if it has no answer, MachineFault if it is silent.
        """
        id, now = (what, about, seen), time.monotonic()
        if id in self._answers and now < self._answers[id][0] and not self.error:
            return self._answers[id][1]
        return await self._once(id, lambda: self._query_and_keep(what, about, seen))

    async def read_log(
        self, key: str, fence: int, offset: int, length: int = bounds.LOG_RANGE
    ) -> LogPiece | None:
        """At most ``length`` bytes of a log from ``offset`` on; None if there is no such log.

        ``fence`` 0 means the latest attempt.  No bytes mean that there are no more yet, fewer ones
        nothing.  MachineFault if it cannot be read at the moment.
        """
        await self._wait_to_read(length)
        piece = await self._once(
            (key, fence, offset), lambda: self._read_any(LogRead(key, fence, offset, length))
        )
        if piece is None or len(piece.data) <= length:
            return piece
        return LogPiece(
            key, piece.fence, offset, piece.data[:length], piece.size, piece.sha256, piece.ended
        )

    @contextlib.asynccontextmanager
    async def follow(self, key: str) -> AsyncIterator[AsyncIterator[Published]]:
        """The pieces of a log as they are published, of all its attempts.

        A reader that is too slow loses the oldest pieces: it has to read the range.
        """
        queue: asyncio.Queue[Published] = asyncio.Queue(bounds.WEB_PIECES)
        if key not in self._followers:
            for broker in self._current():
                broker.follow(key)
        self._followers.setdefault(key, []).append(queue)
        try:
            yield _Pieces(queue)
        finally:
            self._followers[key].remove(queue)
            if not self._followers[key]:
                del self._followers[key]
                for broker in self._brokers.values():
                    broker.unfollow(key)

    async def _wait_to_read(self, length: int) -> None:
        """Wait until a range of a log may be read."""
        if not self._settings.controller:
            return
        now = time.monotonic()
        self._unread += READ_RATE * (now - self._unread_at)
        self._unread = min(READ_AT_ONCE, self._unread) - length
        self._unread_at = now
        if self._unread < 0:
            await asyncio.sleep(-self._unread / READ_RATE)

    # -- questions -------------------------------------------------------------------------

    async def _once(self, id: object, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``ask``, or of its call for an equal question that is not answered yet.

        A question outlives those who asked it: its answer shows that the broker is there, and the
        next one who asks gets it.
        """
        task: asyncio.Task[T] | None = self._asked.get(id)
        if task is None:
            if len(self._asked) >= bounds.WEB_QUESTIONS:
                raise MachineFault(
                    f"{bounds.WEB_QUESTIONS} questions wait for the broker: try again later"
                )
            task = self._asked[id] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._forget(id, done))
        began = time.monotonic()
        while not (await asyncio.wait({task}, timeout=LOOK_EVERY))[0]:
            if time.monotonic() >= began + (PATIENCE_AWAY if self.error else PATIENCE):
                why = self.error or "the broker is silent"
                raise MachineFault(f"no answer: {why}; is fabric-broker running there?")
        return task.result()

    def _forget(self, id: object, task: asyncio.Task[Any]) -> None:
        del self._asked[id]
        if not task.cancelled():
            task.exception()  # if nobody waits any more, nobody has to know

    async def _query_and_keep(self, what: What, about: str, seen: int) -> Heard:
        began = time.monotonic()
        answer = await self._query_all(what, about, seen)
        now = time.monotonic()
        heard = Heard(**msgspec.structs.asdict(answer), asked=began, heard=now)
        self._answers = {id: known for id, known in self._answers.items() if known[0] > now}
        if len(self._answers) < bounds.WEB_QUESTIONS:
            until = now + min(REUSE_MOST, REUSE * (now - began))
            self._answers[what, about, seen] = until, heard
        return heard

    async def _query_all(self, what: What, about: str, seen: int) -> Answer:
        question = Query(PROTOCOL, uuid.uuid4().hex, what, about, seen)
        replies = await asyncio.gather(
            *(broker.ask(question) for broker in self._current()), return_exceptions=True
        )
        answers = [reply for reply in replies if isinstance(reply, Answer)]
        if not answers:
            if self._settings.controller or any(type(one) is FabricError for one in replies):
                raise _worst(replies)
            return Answer(question.id)  # no build runs, or all have just ended
        if self._settings.controller:
            self.warning = answers[0].warning
        return answers[0] if len(answers) == 1 else _merged(answers)

    async def _read_any(self, question: LogRead) -> LogPiece | None:
        replies = await asyncio.gather(
            *(broker.ask(question) for broker in self._current()), return_exceptions=True
        )
        pieces = [reply for reply in replies if isinstance(reply, LogPiece)]
        if pieces:
            return max(pieces, key=lambda piece: (piece.fence, len(piece.data)))
        if self._settings.controller and replies[0] is not None:
            raise _worst(replies)
        return None

    # -- brokers ---------------------------------------------------------------------------

    def _current(self) -> list[BrokerThread]:
        """The connections to the controller, or to the builds that run now."""
        now = time.monotonic()
        if not self._settings.controller and now >= self._looked + LOOK_EVERY:
            self._looked = now
            here = {str(folder): folder for folder in folders(self._settings.state_dir)}
            for name, broker in list(self._brokers.items()):
                if broker.ended or name not in here:
                    self._brokers.pop(name).end()
            for name, folder in here.items():
                if name not in self._brokers and _listens(folder):
                    self._open_here(folder)
        return list(self._brokers.values())

    def _open_here(self, folder: Path) -> None:
        addresses = in_directory(folder)
        self._open(
            str(folder),
            lambda wake: Connection(addresses, "follow", wake=wake),
            lambda: _listens(folder),
        )

    def _open(
        self,
        name: str,
        connect: Callable[[int], Connection],
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        broker = self._brokers[name] = BrokerThread(connect, self._deliver, alive)
        for key in self._followers:
            broker.follow(key)

    def _deliver(self, piece: Published) -> None:
        for queue in self._followers.get(piece.key, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(piece)


class _Pieces:
    """Pieces without end.  Waiting for one may be cancelled, which would end a generator."""

    def __init__(self, queue: asyncio.Queue[Published]) -> None:
        self._queue = queue

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Published:
        return await self._queue.get()


def _listens(folder: Path) -> bool:
    """Whether the broker in the folder has opened its socket, and has not ended."""
    return (folder / "jobs").exists()


def _worst(replies: list[Any]) -> Exception:
    """The error to report of several brokers: one with a reason rather than one with none."""
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    return min(errors, key=lambda error: isinstance(error, MachineFault))


def _merged(answers: list[Answer]) -> Answer:
    """The answers of several builds in one; only one of them knows a request."""

    def all_of(field: str) -> tuple[Any, ...]:
        return tuple(one for answer in answers for one in getattr(answer, field))

    return Answer(
        answers[0].id,
        requests=all_of("requests"),
        workers=all_of("workers"),
        lines=all_of("lines"),
        keys=all_of("keys"),
        logs=all_of("logs"),
        update=next((one.update for one in answers if one.update is not None), None),
        graph=next((one.graph for one in answers if one.graph), ()),
        attempts=all_of("attempts"),
    )
