"""Decides which logs of a request to open, follow, read and close.  Pure: no I/O.

A log is streamed while its step runs, and read by ranges where the stream left a gap.  At most
`bounds.LOGS_READ` logs are read at a time, each by one question.  An unanswered question is
repeated with growing delays.  A bounded number of logs is open; the others wait.
"""

from __future__ import annotations

import hashlib

import msgspec

from fabric import bounds
from fabric.wire.messages import (
    BuildGraph,
    BuildOrder,
    Leave,
    LogPiece,
    LogRead,
    Poll,
    Published,
    StepState,
)

#: Seconds after which a question is repeated the first time, and how often this doubles.
ASK_AGAIN = 0.5
DOUBLINGS = 2
#: Seconds for which the stream may still bring the rest of a log before it is read; and after
#: which a question that could not be sent is repeated.
LINGER = 0.02
#: Answers without new bytes after which the log of an ended step is given up.
MISSES = 20
#: Seconds without an answer, after the end of a request, after which all logs are given up.
GIVE_UP = 30.0

ENDED = frozenset({"done", "cached", "failed", "cancelled"})  # states of steps


class Send(msgspec.Struct, frozen=True):
    """Send this to the broker."""

    message: BuildOrder | BuildGraph | Poll | Leave | LogRead


class OpenLog(msgspec.Struct, frozen=True):
    """The log of a new attempt begins: empty its file, and subscribe to ``key``.

    Do not subscribe if the step has ended: nothing of its log is published any more.
    """

    key: str
    fence: int
    name: str = ""  # file name, from the broker


class AppendLog(msgspec.Struct, frozen=True):
    """Write ``data`` at ``offset``, which is the end of the file."""

    key: str
    offset: int
    data: bytes | memoryview


class Follow(msgspec.Struct, frozen=True):
    """Subscribe to ``key``, or end the subscription: reading the log catches up faster."""

    key: str
    on: bool


class CloseLog(msgspec.Struct, frozen=True):
    """The log gets no more bytes.

    ``whole``: size and digest are as the worker reported, or its build was cancelled, so that there
    are no more bytes.
    """

    key: str
    fence: int
    whole: bool


LogAction = Send | OpenLog | AppendLog | Follow | CloseLog


class _Log(msgspec.Struct, eq=False):
    """The beginning of the log of one attempt."""

    key: str
    fence: int
    name: str
    streamed: bool  # False: it is read range by range, until that has caught up
    have: int = 0  # bytes of the beginning
    known: int = 0  # bytes that exist, as far as known
    digest: hashlib._Hash = msgspec.field(default_factory=hashlib.sha256)  # of the beginning
    size: int = -1  # of the complete log; -1: unknown
    sha256: str = ""
    ended: bool = False  # its step has ended
    closed: bool = False
    restarted: bool = False  # read again because the digest was wrong; happens once
    asked: float = float("-inf")  # when the pending question was sent last
    asks: int = 0  # how often it was sent
    misses: int = 0  # consecutive answers without new bytes

    @property
    def wants(self) -> bool:
        lacks = self.have < self.known or (self.ended and self.have != self.size)
        return not self.closed and (lacks or not self.streamed)

    @property
    def due(self) -> float:
        """When the next question may be sent."""
        return self.asked + ASK_AGAIN * (1 << min(max(0, self.asks - 1), DOUBLINGS))


class LogMirror:
    """All logs of a request, of which ``most`` may be open at a time."""

    def __init__(self, most: int = bounds.LOGS_OPEN) -> None:
        self._most = most
        self._logs: dict[str, _Log] = {}
        self._open: dict[str, _Log] = {}  # opened and not closed
        self._queued: dict[str, _Log] = {}  # not opened yet
        self._asking: dict[str, None] = {}  # open ones with a pending question
        self._moved = float("-inf")  # time of the last answer
        #: when `tick` is due
        self.due = float("inf")

    @property
    def complete(self) -> bool:
        """Every log is closed."""
        return not self._open and not self._queued

    # -- events ----------------------------------------------------------------------------

    def tick(self, now: float, *, over: bool) -> list[LogAction]:
        """Open logs if there is room, and repeat questions that are due.  Sets ``due``."""
        actions: list[LogAction] = []
        if over and not self.complete and now - self._moved >= GIVE_UP:
            return self.give_up()
        while self._queued and self._has_room():
            log = self._queued.pop(next(iter(self._queued)))
            actions += [self._opened(log), *self._check(log)]
            if log.wants:
                actions += self._ask(log, now)
        self.due = self._moved + GIVE_UP if over and not self.complete else float("inf")
        for log in self._open.values():
            if log.wants and self._may_ask(log):
                if now >= log.due:
                    actions += self._ask(log, now)
                self.due = min(self.due, log.due)
        return actions

    def follow(self, step: StepState, now: float) -> list[LogAction]:
        """Handle that a step has changed."""
        actions: list[LogAction] = []
        log = self._logs.get(step.key)
        if step.fence and (log is None or log.fence < step.fence):
            log, actions = self._begin(step, step.fence)
        elif log is not None and step.state in ENDED and 0 < step.fence < log.fence:
            # The stream has a later attempt, which is not of this request.
            log, actions = self._begin(step, step.fence)
        if log is None or log.closed or 0 < step.fence < log.fence:
            return actions
        if step.log_size > log.known:
            log.known = step.log_size
            if step.state == "running":  # the stream may still bring it
                log.asked = max(log.asked, now)
                self.due = min(self.due, log.due)
        if step.log_sha256:
            log.size, log.sha256 = step.log_size, step.log_sha256
        elif step.state == "done" and not step.log_size:
            log.size, log.sha256 = 0, hashlib.sha256().hexdigest()
        if step.state == "cancelled" and log.size < 0:
            return [*actions, *self._close(log, whole=True)]
        if step.state in ENDED:
            actions += self._end(log, now)
        return actions

    def end(self, now: float) -> list[LogAction]:
        """Handle that the request is over, and with it every step."""
        self._moved = now
        return [action for log in self._unclosed() for action in self._end(log, now)]

    def give_up(self) -> list[LogAction]:
        """Close all logs as they are."""
        return [action for log in self._unclosed() for action in self._close(log, whole=False)]

    def missing(self, key: str) -> list[LogAction]:
        """Handle that the broker does not have a log."""
        log = self._open.get(key)
        return self._close(log, whole=False) if log is not None and log.ended else []

    def unsent(self, read: LogRead) -> None:
        """Note that a question could not be sent; it is repeated soon."""
        log = self._logs[read.key]
        log.asks = 0
        log.asked += LINGER - ASK_AGAIN
        self.due = min(self.due, log.due)

    def published(self, piece: Published, step: StepState | None, now: float) -> list[LogAction]:
        """Handle a published piece, maybe of an attempt that no update has mentioned.

        ``step`` is the step of the log; None if the request has no such step.
        """
        actions: list[LogAction] = []
        log = self._logs.get(piece.key)
        if step and step.state not in ENDED and (log is None or log.fence < piece.fence):
            log, actions = self._begin(step, piece.fence)
        if log is None or log.fence != piece.fence or log.closed:
            return []
        return actions + self._take(log, piece.offset, piece.data, now)

    def piece(self, piece: LogPiece, now: float) -> list[LogAction]:
        """Handle a requested piece."""
        log = self._open.get(piece.key)
        if log is None or log.fence != piece.fence:
            return []
        self._moved = now
        self._asking.pop(log.key, None)
        log.asked, log.asks = float("-inf"), 0
        if piece.size >= 0:
            log.size, log.sha256 = piece.size, piece.sha256
            log.known = max(log.known, piece.size)
        actions = self._take(log, piece.offset, piece.data, now)
        log.misses += 1
        if log.closed:
            return actions
        if not log.streamed and len(piece.data) < bounds.LOG_RANGE:
            log.streamed = True
            # Pieces published before the subscription has an effect would be missed.
            actions += [Follow(log.key, on=True), *self._ask(log, now)]
        elif piece.data and log.wants and log.asked < now:
            actions += self._ask(log, now)
        elif not piece.data and log.ended and piece.ended and log.size < 0:
            actions += self._close(log, whole=False)  # its worker was lost: there are no more bytes
        elif log.ended and log.misses > MISSES:
            actions += self._close(log, whole=False)
        elif log.wants:
            log.asked = now  # no new bytes yet: repeat the question later
            self.due = min(self.due, log.due)
        return actions

    # -- actions -----------------------------------------------------------------------------

    def _unclosed(self) -> list[_Log]:
        return [*self._open.values(), *self._queued.values()]

    def _has_room(self) -> bool:
        return len(self._open) < self._most and len(self._asking) < bounds.LOGS_READ

    def _begin(self, step: StepState, fence: int) -> tuple[_Log, list[LogAction]]:
        """Begin the log of an attempt; it is queued if its step has ended, or too many are open."""
        ended = step.state in ENDED
        log = _Log(step.key, fence, step.log, streamed=not ended)
        self._asking.pop(log.key, None)
        self._queued.pop(log.key, None)
        self._logs[log.key] = log
        if log.key not in self._open and (ended or len(self._open) >= self._most):
            log.streamed = False
            self._queued[log.key] = log
            self.due = float("-inf")
            return log, []
        return log, [self._opened(log)]

    def _opened(self, log: _Log) -> OpenLog:
        self._open[log.key] = log
        return OpenLog(log.key, log.fence, log.name)

    def _end(self, log: _Log, now: float) -> list[LogAction]:
        """Handle that the step of a log has ended."""
        if log.ended:
            return []
        log.ended = True
        self.due = float("-inf")
        if log.key in self._queued:
            return []
        actions = self._check(log)
        if log.wants and not log.asks:
            # the stream may still bring the rest
            log.asked = now - ASK_AGAIN + (LINGER if log.streamed else 0.0)
        return actions

    def _take(
        self, log: _Log, offset: int, data: bytes | memoryview, now: float
    ) -> list[LogAction]:
        end = offset + len(data)
        log.known = max(log.known, end)
        if log.key in self._queued:
            return []
        if offset > log.have:
            actions: list[LogAction] = []
            if log.streamed and end - log.have > bounds.LOG_RANGE:
                log.streamed = False
                actions.append(Follow(log.key, on=False))
            if now >= log.due and self._may_ask(log):
                actions += self._ask(log, now)
            return actions
        if end <= log.have:
            return self._check(log)
        fresh = data[log.have - offset :]
        action = AppendLog(log.key, log.have, fresh)
        log.digest.update(fresh)
        log.have = end
        log.misses = 0
        return [action, *self._check(log)]

    def _check(self, log: _Log) -> list[LogAction]:
        """Close a log that is complete; read one with a wrong digest again, once."""
        if not log.ended or log.size < 0 or log.have < log.size:
            return []
        if log.have == log.size and log.digest.hexdigest() == log.sha256:
            return self._close(log, whole=True)
        if log.restarted:
            return self._close(log, whole=False)
        log.restarted = log.streamed = True
        log.have, log.known, log.digest = 0, log.size, hashlib.sha256()
        log.asked, log.asks = float("-inf"), 0
        return [self._opened(log)]

    def _may_ask(self, log: _Log) -> bool:
        return log.key in self._asking or len(self._asking) < bounds.LOGS_READ

    def _ask(self, log: _Log, now: float) -> list[LogAction]:
        self._asking[log.key] = None
        log.asked = now
        log.asks += 1
        self.due = min(self.due, log.due)
        return [Send(LogRead(log.key, log.fence, log.have, bounds.LOG_RANGE))]

    def _close(self, log: _Log, *, whole: bool) -> list[LogAction]:
        log.closed = True
        self._asking.pop(log.key, None)
        self.due = float("-inf")  # a queued log may be opened
        if self._queued.pop(log.key, None) is not None:
            return []  # it was never opened
        del self._open[log.key]
        return [CloseLog(log.key, log.fence, whole)]
