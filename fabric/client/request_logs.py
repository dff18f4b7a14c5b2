"""Decides which logs of a request to open, follow, read and close.  Pure: no I/O.

A log is streamed while its step runs, and read by ranges where the stream left a gap.  At most
`bounds.LOGS_READ` logs are read at a time, each by one question.  An unanswered question is
repeated with growing delays.  At most ``most`` logs are open; the others wait.
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

#: Seconds before a question is repeated the first time; the wait doubles so many times.
ASK_AGAIN = 0.5
DOUBLINGS = 2
#: Seconds in which the stream may bring the rest of a log, or what cannot be sent be sent.
LINGER = 0.02
#: Times the broker may have nothing new of a log whose step has ended.
MISSES = 20
#: Seconds without news of any log, after the end of a request, until the rest is given up.
GIVE_UP = 30.0

ENDED = frozenset({"done", "cached", "failed", "cancelled"})  # steps


class Send(msgspec.Struct, frozen=True):
    """Send this to the broker."""

    message: BuildOrder | BuildGraph | Poll | Leave | LogRead


class OpenLog(msgspec.Struct, frozen=True):
    """The log of a new attempt begins: start its file anew, and subscribe to ``key``, unless the
    step has ended already: nothing is published of it any more.
    """

    key: str
    fence: int
    name: str = ""  # its file's, as the broker tells it


class AppendLog(msgspec.Struct, frozen=True):
    """Write ``data`` at ``offset`` of the file, which is its end."""

    key: str
    offset: int
    data: bytes | memoryview


class Follow(msgspec.Struct, frozen=True):
    """Subscribe to ``key``; or, if not ``on``, no more: it is read faster than it is streamed."""

    key: str
    on: bool


class CloseLog(msgspec.Struct, frozen=True):
    """Nothing more will come.

    ``whole``: size and digest are those the worker told, or its build was given up, so that
    there is no more of it.
    """

    key: str
    fence: int
    whole: bool


LogAction = Send | OpenLog | AppendLog | Follow | CloseLog


class _Log(msgspec.Struct, eq=False):
    """What is here of the log of one attempt."""

    key: str
    fence: int
    name: str
    streamed: bool  # else it is read range by range, until that has caught up
    have: int = 0
    known: int = 0  # this many bytes exist, as far as told
    digest: hashlib._Hash = msgspec.field(default_factory=hashlib.sha256)
    size: int = -1  # of the whole, once told
    sha256: str = ""
    ended: bool = False  # its step has ended
    closed: bool = False
    restarted: bool = False  # once, because the digest was wrong
    asked: float = float("-inf")  # when a range was asked for that has not come yet,
    asks: int = 0  # how often,
    misses: int = 0  # and answers in a row that brought nothing

    @property
    def wants(self) -> bool:
        lacks = self.have < self.known or (self.ended and self.have != self.size)
        return not self.closed and (lacks or not self.streamed)

    @property
    def due(self) -> float:
        """When it may be asked for."""
        return self.asked + ASK_AGAIN * (1 << min(max(0, self.asks - 1), DOUBLINGS))


class LogMirror:
    """All logs of a request, of which ``most`` may be open at once."""

    def __init__(self, most: int = bounds.LOGS_OPEN) -> None:
        self._most = most
        self._logs: dict[str, _Log] = {}
        self._open: dict[str, _Log] = {}  # those that are not closed,
        self._queued: dict[str, _Log] = {}  # and those to be opened
        self._asking: dict[str, None] = {}  # open ones of which a range is asked for
        self._moved = float("-inf")  # when there was news of one
        #: when `tick` is due; the past: at once
        self.due = float("inf")

    @property
    def complete(self) -> bool:
        """Every log is closed."""
        return not self._open and not self._queued

    # -- what happens ----------------------------------------------------------------------

    def tick(self, now: float, *, over: bool) -> list[LogAction]:
        """Time has passed: open what there is room for, ask again.  Sets ``due``."""
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
        """A step has news."""
        actions: list[LogAction] = []
        log = self._logs.get(step.key)
        if step.fence and (log is None or log.fence < step.fence):
            log, actions = self._begin(step, step.fence)
        elif log is not None and step.state in ENDED and 0 < step.fence < log.fence:
            # The stream told of a later attempt, which is not this request's.
            log, actions = self._begin(step, step.fence)
        if log is None or log.closed or 0 < step.fence < log.fence:
            return actions
        if step.log_size > log.known:
            log.known = step.log_size
            if step.state == "running":  # the stream may bring it yet
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
        """The request is over, and with it every step."""
        self._moved = now
        return [action for log in self._unclosed() for action in self._end(log, now)]

    def give_up(self) -> list[LogAction]:
        """Nothing more will come of any log."""
        return [action for log in self._unclosed() for action in self._close(log, whole=False)]

    def missing(self, key: str) -> list[LogAction]:
        """The broker does not have the log."""
        log = self._open.get(key)
        return self._close(log, whole=False) if log is not None and log.ended else []

    def unsent(self, read: LogRead) -> None:
        """A question was not sent: it is put again soon."""
        log = self._logs[read.key]
        log.asks = 0
        log.asked += LINGER - ASK_AGAIN
        self.due = min(self.due, log.due)

    def published(self, piece: Published, step: StepState | None, now: float) -> list[LogAction]:
        """A published piece, maybe of an attempt that no update has told of yet.

        ``step`` is the one whose log it is, None if that is not this request's.
        """
        actions: list[LogAction] = []
        log = self._logs.get(piece.key)
        if step and step.state not in ENDED and (log is None or log.fence < piece.fence):
            log, actions = self._begin(step, piece.fence)
        if log is None or log.fence != piece.fence or log.closed:
            return []
        return actions + self._take(log, piece.offset, piece.data, now)

    def piece(self, piece: LogPiece, now: float) -> list[LogAction]:
        """A piece that was asked for."""
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
            # What is published until that has an effect would be missed.
            actions += [Follow(log.key, on=True), *self._ask(log, now)]
        elif piece.data and log.wants and log.asked < now:
            actions += self._ask(log, now)
        elif not piece.data and log.ended and log.size < 0:
            actions += self._close(log, whole=False)  # its worker was lost: this is all there is
        elif log.ended and log.misses > MISSES:
            actions += self._close(log, whole=False)
        elif log.wants:
            log.asked = now  # nothing new there yet: ask again, but not at once
            self.due = min(self.due, log.due)
        return actions

    # -- inside ------------------------------------------------------------------------------

    def _unclosed(self) -> list[_Log]:
        return [*self._open.values(), *self._queued.values()]

    def _has_room(self) -> bool:
        return len(self._open) < self._most and len(self._asking) < bounds.LOGS_READ

    def _begin(self, step: StepState, fence: int) -> tuple[_Log, list[LogAction]]:
        """The log of an attempt; it waits if it is only to be read, or too many are open."""
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
        """A log's step has ended."""
        if log.ended:
            return []
        log.ended = True
        self.due = float("-inf")
        if log.key in self._queued:
            return []
        actions = self._check(log)
        if log.wants and not log.asks:
            # the stream may bring the rest any moment
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
        """Close a log that is whole; begin again, once, with one that is wrong."""
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
        self.due = float("-inf")  # another may have its turn
        if self._queued.pop(log.key, None) is not None:
            return []  # it was never opened
        del self._open[log.key]
        return [CloseLog(log.key, log.fence, whole)]
