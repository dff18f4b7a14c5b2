"""Asks one broker, in a thread that owns the connection to it.

Coroutines hand over questions and wait for futures of their own loop, so the loop never waits for a
socket.  A question is repeated until it is answered, for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from fabric import bounds
from fabric.client.controller import REPEAT_AFTER, REPEAT_AFTER_MOST
from fabric.errors import FabricError, MachineFault, with_own_commands
from fabric.wire.messages import PROTOCOL, Answer, LogPiece, LogRead, Published, Query, Rejected
from fabric.wire.sockets import Codec, DecodeError

if TYPE_CHECKING:
    from fabric.wire.connection import Connection

#: Seconds for which a question is repeated: the broker drops those of a viewer that has used its
#: share of time, so the answer may come late.
LASTING = 60.0
#: Seconds between two messages, at most: without answers, silence would mean nothing.
HEARTBEAT = 1.0
#: Pieces, and messages, that are received in one turn.
AT_ONCE = 100

Reply: TypeAlias = Answer | LogPiece | None


class Question:
    """A question, and the future of its reply: None if there is no such log."""

    __slots__ = ("began", "delay", "due", "message", "reply")

    def __init__(self, message: Query | LogRead, reply: asyncio.Future[Reply]) -> None:
        self.message = message
        self.reply = reply
        self.began = self.due = time.monotonic()
        self.delay = REPEAT_AFTER


class BrokerThread:
    """One connection; `ask`, `follow` and `unfollow` may be called in the loop's thread only."""

    def __init__(
        self,
        open_connection: Callable[[int], Connection],
        deliver: Callable[[Published], None],
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """``open_connection`` gets the descriptor that ends `Connection.wait`.

        ``deliver`` is called in the loop with pieces of followed logs.  ``alive`` is called now and
        then in the thread: False ends it.  Errors as those of ``open_connection``.
        """
        self._loop = asyncio.get_running_loop()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._connection = open_connection(self._wake)
        except BaseException:
            os.close(self._wake)
            raise
        self._deliver = deliver
        self._alive = alive
        self._orders: SimpleQueue[Question | tuple[str, bool] | None] = SimpleQueue()
        self._queries: dict[str, Question] = {}
        self._reads: list[Question] = []  # sent
        self._waiting: deque[Question] = deque()  # reads that are not sent yet
        self._codec: Codec[Answer | LogPiece | Rejected] = Codec(Answer | LogPiece | Rejected)
        self._beat = Query(PROTOCOL, uuid.uuid4().hex, "update")
        self._sent = 0.0
        # a full deque drops its oldest piece: the reader sees the gap, and reads the range
        self._pieces: deque[Published] = deque(maxlen=bounds.WEB_PIECES)
        #: it is closed, or not alive any more
        self.ended = False
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._thread.start()

    # -- in the loop's thread --------------------------------------------------------------

    @property
    def error(self) -> str:
        """Why the broker is silent; "" if it answers.  It is "" before `ask` returns an answer."""
        return self._connection.error

    async def ask(self, message: Query | LogRead) -> Reply:
        """The reply to a message.  FabricError with the broker's reason, MachineFault if there is
        none.
        """
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self._order(Question(message, reply))
        return await reply

    def follow(self, key: str) -> None:
        """Deliver the pieces of a log."""
        self._order((key, True))

    def unfollow(self, key: str) -> None:
        """Deliver no more pieces of a log."""
        self._order((key, False))

    def end(self) -> None:
        """End the thread soon; pending questions fail."""
        self._order(None)

    async def close(self) -> None:
        """End the thread, and wait for that."""
        self.end()
        await asyncio.to_thread(self._thread.join)

    def _order(self, order: Question | tuple[str, bool] | None) -> None:
        self._orders.put(order)
        with contextlib.suppress(OSError):  # closed: nothing waits
            os.eventfd_write(self._wake, 1)
        if self.ended:
            self._fail_orders()

    def _take_pieces(self) -> None:
        while self._pieces:
            self._deliver(self._pieces.popleft())

    # -- in the own thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            checked = time.monotonic()
            while self._take_orders():
                self._send(time.monotonic())
                self._connection.wait(self._due() - time.monotonic())
                self._receive()
                now = time.monotonic()
                self._connection.maintain(now)
                self._give_up(now)
                if now >= checked + HEARTBEAT:
                    checked = now
                    if not self._alive():
                        return
        finally:
            self._connection.close(linger=0)
            self.ended = True
            for question in list(self._pending()):
                self._fail(question, MachineFault("the connection to the broker was closed"))
            self._fail_orders()
            os.close(self._wake)

    def _fail_orders(self) -> None:
        """Fail the questions that came too late."""
        with contextlib.suppress(Empty):
            while True:
                if isinstance(order := self._orders.get_nowait(), Question):
                    self._fail(order, MachineFault("the connection to the broker was closed"))

    def _take_orders(self) -> bool:
        """Take the orders of the loop; False to end."""
        with contextlib.suppress(Empty):
            while True:
                match self._orders.get_nowait():
                    case None:
                        return False
                    case Question() as question:
                        if isinstance(question.message, Query):
                            self._queries[question.message.id] = question
                        else:
                            self._waiting.append(question)
                    case (key, True):
                        self._connection.subscribe(key)
                    case (key, _):
                        self._connection.unsubscribe(key)
        return True

    def _pending(self) -> Iterator[Question]:
        yield from self._queries.values()
        yield from self._reads
        yield from self._waiting

    def _sendable(self) -> Iterator[Question]:
        """The broker drops more reads at a time."""
        while self._waiting and len(self._reads) < bounds.LOGS_READ:
            self._reads.append(self._waiting.popleft())
        yield from self._queries.values()
        yield from self._reads

    def _send(self, now: float) -> None:
        for question in self._sendable():
            if now >= question.due:
                question.due = now + question.delay
                question.delay = min(2 * question.delay, REPEAT_AFTER_MOST)
                self._connection.send(self._codec.encode(question.message))
                self._sent = now
        if now >= self._sent + HEARTBEAT:
            self._connection.send(self._codec.encode(self._beat))
            self._sent = now

    def _due(self) -> float:
        due = min((question.due for question in self._pending()), default=float("inf"))
        return min(due, self._sent + HEARTBEAT)

    def _receive(self) -> None:
        for frame in self._connection.receive(AT_ONCE):
            try:
                message = self._codec.decode(frame)
            except DecodeError:  # another version, or damaged: the question is repeated
                continue
            match message:
                case Answer():
                    self._answered(message)
                case LogPiece():
                    self._settle_reads(message, message)
                case Rejected():
                    self._rejected(message)
        before = len(self._pieces)
        for piece in self._connection.pieces(AT_ONCE):
            self._pieces.append(piece._replace(data=bytes(piece.data)))
        if self._pieces and not before:
            self._in_loop(self._take_pieces)

    def _answered(self, answer: Answer) -> None:
        question = self._queries.pop(answer.id, None)
        if question is None:
            return
        if answer.error:
            error = "\n".join(filter(None, (answer.error, answer.warning)))
            self._fail(question, FabricError(with_own_commands(error)))
        else:
            self._settle(question, answer)

    def _rejected(self, message: Rejected) -> None:
        passing = message.code == "not-now"
        error = (MachineFault if passing else FabricError)(with_own_commands(message.reason))
        if question := self._queries.pop(message.about, None):
            self._fail(question, error)
        else:
            self._settle_reads(message, error if passing else None)

    def _settle_reads(
        self, message: LogPiece | Rejected, reply: LogPiece | Exception | None
    ) -> None:
        left = []
        for question in self._reads:
            assert isinstance(question.message, LogRead)
            if not _answers(message, question.message):
                left.append(question)
            elif isinstance(reply, Exception):
                self._fail(question, reply)
            else:
                self._settle(question, reply)
        self._reads = left

    def _give_up(self, now: float) -> None:
        late = [question for question in self._pending() if now >= question.began + LASTING]
        if not late:
            return
        for question in late:
            self._fail(question, MachineFault(self.error or "the broker is silent"))
        gone = set(late)
        self._queries = {id: one for id, one in self._queries.items() if one not in gone}
        self._reads = _without(self._reads, gone)
        self._waiting = deque(_without(self._waiting, gone))

    def _settle(self, question: Question, reply: Reply) -> None:
        def settle() -> None:
            if not question.reply.done():
                question.reply.set_result(reply)

        self._in_loop(settle)

    def _fail(self, question: Question, error: Exception) -> None:
        def settle() -> None:
            if not question.reply.done():
                question.reply.set_exception(error)

        self._in_loop(settle)

    def _in_loop(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(function)


def _answers(message: LogPiece | Rejected, read: LogRead) -> bool:
    """Whether a message answers a read; one of fence 0 gets the latest attempt."""
    if isinstance(message, Rejected):
        return message.about == read.key
    at = (message.key, message.offset)
    return at == (read.key, read.offset) and read.fence in (0, message.fence)


def _without(questions: Iterable[Question], gone: set[Question]) -> list[Question]:
    return [one for one in questions if one not in gone]
