"""The initiator's side of the protocol, pure: one request as the broker tells it, and its logs.

The shell around it (`fabric.initiator`) owns sockets, files and the clock::

    mirror = RequestMirror(Order(...))            # or a Submit; or the id of a request to follow
    actions = mirror.tick(now)                    # once at the start, then at least at mirror.due
    actions = mirror.update(update, now)          # an Update came
    actions = mirror.refused(refused, now)        # a Refused came
    actions = mirror.piece(piece, now)            # a LogPiece came
    actions = mirror.published(piece, now)        # a published piece of log came
    mirror.unsent(message)                        # a message could not be sent now

Every call returns the actions to carry out, in order: `Send` to the broker; `Changed`, a step
has news; `OpenLog`, `AppendLog`, `Follow`, `CloseLog` for its log; `Over`, the request ended.  Stop
once ``mirror.complete``: the request is over and every log is closed; then do what `leave` says.
To stop following a detached request, or somebody else's, do the same at any time.
"""

from __future__ import annotations

import hashlib

import msgspec

from fabric import bounds
from fabric.wire.messages import (
    Leave,
    LogPiece,
    LogRead,
    Order,
    Poll,
    Published,
    Refused,
    RequestState,
    StepState,
    Submit,
    Update,
)

#: Seconds between polls, and before a question is repeated.
POLL_EVERY = 1.0
ASK_AGAIN = 0.5
#: Seconds in which the stream may bring the rest of a log, or what cannot be sent be sent.
LINGER = 0.02
#: A submit is repeated after this long, then twice, four times ... as long.
SUBMIT_AGAIN = 1.0
#: Times the broker may have nothing new of a log whose step has ended.
MISSES = 20
#: Logs of so many steps are subscribed to before they begin: what is over soon is not missed.
AHEAD = 1000
#: An update with more steps than this is acknowledged at once, to keep the next one small.
MANY = 50

OVER = frozenset({"done", "failed", "cancelled"})  # requests
ENDED = frozenset({"done", "cached", "failed", "cancelled"})  # steps


class Send(msgspec.Struct, frozen=True):
    """Send this to the broker."""

    message: Order | Submit | Poll | Leave | LogRead


class Changed(msgspec.Struct, frozen=True):
    """A step has news.  ``old`` is None if it is the first."""

    old: StepState | None
    new: StepState


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


class Over(msgspec.Struct, frozen=True):
    """The request ended: "done", "failed" or "cancelled".  Logs may still come.

    ``refused``: the broker does not take the request, and ``message`` says why.
    """

    state: RequestState
    message: str
    refused: bool = False


Action = Send | Changed | OpenLog | AppendLog | Follow | CloseLog | Over


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
    asked: float = float("-inf")  # when a range was asked for that has not come yet
    misses: int = 0  # answers in a row that brought nothing

    @property
    def wants(self) -> bool:
        lacks = self.have < self.known or (self.ended and self.have != self.size)
        return not self.closed and (lacks or not self.streamed)


class RequestMirror:
    """One request, as far as is known here.

    ``wanted`` is what to ask for, or the id of a request that somebody asked for already.
    """

    def __init__(self, wanted: Order | Submit | str) -> None:
        self.wanted = None if isinstance(wanted, str) else wanted
        self.request = wanted if isinstance(wanted, str) else wanted.request
        self.title = self.wanted.title if self.wanted else ""
        self.goals = wanted.goals if isinstance(wanted, Submit) else ()  # keys, once known
        self.state: RequestState = "checking" if isinstance(wanted, Submit) else "resolving"
        self.message = ""
        self.left = 0.0  # seconds expected until the end; 0: unknown
        self.steps: dict[str, StepState] = {}  # those the broker spoke of
        self.version = 0
        self.accepted = False  # the broker knows the request
        self.heard = float("-inf")  # when it last spoke
        self.due = float("-inf")  # when `tick` is
        self._poll_due = float("-inf")
        self._logs: dict[str, _Log] = {}
        self._open: dict[str, _Log] = {}  # those that are not closed
        self._submits = 0

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def complete(self) -> bool:
        """Over, and every log closed."""
        return self.over and not self._open

    # -- the request -----------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: poll, or submit, or ask again.  Sets ``due``."""
        actions: list[Action] = []
        if now >= self._poll_due:
            self._poll_due = now + POLL_EVERY
            if self.accepted:
                actions.append(Send(Poll(self.request, self.version)))
            elif not self.over:
                self._poll_due = now + SUBMIT_AGAIN * 2 ** min(self._submits, 3)
                self._submits += 1
                actions.append(Send(self.wanted or Poll(self.request, self.version)))
        self.due = self._poll_due
        for log in [log for log in self._open.values() if log.wants]:
            if now - log.asked >= ASK_AGAIN:
                actions += self._ask(log, now)
            self.due = min(self.due, max(now, log.asked + ASK_AGAIN))
        return actions

    def update(self, update: Update, now: float) -> list[Action]:
        """The broker tells news."""
        if update.request != self.request:
            return []
        self.heard = now
        self.accepted, self._submits = True, 0
        if update.version <= self.version:
            if update.version == self.version:
                self.left = update.left
            return []
        self.version, self.left = update.version, update.left
        self.title = update.title or self.title
        self.goals = update.goals or self.goals
        actions: list[Action] = []
        for step in update.steps:
            old = self.steps.get(step.key)
            if old is not None and old.state == "done" and step.state == "cached":
                continue  # told again after a restart of the broker
            begins = old is None and not step.fence and step.state not in ENDED
            if begins and len(self.steps) < AHEAD:
                actions.append(Follow(step.key, on=True))
            if old != step:
                actions.append(self._change(step))
            actions += self._follow(step, now)
        if update.state in OVER and not self.over:
            actions.append(Over(update.state, update.message))
            for log in list(self._open.values()):
                actions += self._end(log, now)  # whatever a restarted broker never spoke of again
        self.state, self.message = update.state, update.message
        if len(update.steps) > MANY:
            actions.append(Send(Poll(self.request, self.version)))
        return actions

    def refused(self, refused: Refused, now: float) -> list[Action]:
        """The broker cannot serve something asked."""
        self.heard = now
        if refused.code == "no-log":
            log = self._logs.get(refused.about)
            if log is not None and log.ended and not log.closed:
                return self._close(log, whole=False)
            return []
        if refused.about != self.request or refused.code == "not-now" or self.over:
            return []  # and asked for again, if it was not now
        if refused.code == "unknown-request" and self.wanted is not None:
            # The broker has been restarted, or had given us up: what it builds, it finds again.
            if not self.accepted:
                return []
            self.accepted = False
            self.due = self._poll_due = now
            unsure = [step for step in self.steps.values() if step.state not in ENDED]
            return [self._change(_waiting(step)) for step in unsure]
        self.accepted = False
        self.state, self.message = "failed", refused.reason
        actions: list[Action] = []
        for log in list(self._open.values()):
            actions += self._close(log, whole=False)
        return [*actions, Over("failed", refused.reason, refused=True)]

    def leave(self) -> list[Action]:
        """The user wants it no more, or it is complete, or is detached and goes on without us."""
        if self.wanted is None:
            return []  # it ends if those who asked for it leave
        if not self.over and not self.wanted.detach:
            self.state = "cancelled"
        return [Send(Leave(self.request))]

    def _change(self, step: StepState) -> Changed:
        old = self.steps.get(step.key)
        self.steps[step.key] = step
        return Changed(old, step)

    # -- logs ------------------------------------------------------------------------------

    def unsent(self, message: Order | Submit | Poll | Leave | LogRead) -> None:
        """It was not sent.  A question for a log is put again soon; all else will be anyway."""
        if isinstance(message, LogRead):
            log = self._logs[message.key]
            log.asked += LINGER - ASK_AGAIN
            self.due = min(self.due, log.asked + ASK_AGAIN)

    def published(self, piece: Published, now: float) -> list[Action]:
        """A published piece of a log, maybe of an attempt that no update has told of yet."""
        actions: list[Action] = []
        log, step = self._logs.get(piece.key), self.steps.get(piece.key)
        if step and step.state not in ENDED and (log is None or log.fence < piece.fence):
            log, actions = self._begin(step, piece.fence)
        if log is None or log.fence != piece.fence or log.closed:
            return []
        return actions + self._take(log, piece.offset, piece.data, now)

    def piece(self, piece: LogPiece, now: float) -> list[Action]:
        """A piece that was asked for."""
        self.heard = now
        log = self._logs.get(piece.key)
        if log is None or log.fence != piece.fence or log.closed:
            return []
        log.asked = float("-inf")
        if piece.size >= 0:
            log.size, log.sha256 = piece.size, piece.sha256
            log.known = max(log.known, piece.size)
        actions = self._take(log, piece.offset, piece.data, now)
        log.misses += 1
        if not log.closed and not log.streamed and len(piece.data) < bounds.LOG_RANGE:
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
            self.due = min(self.due, now + ASK_AGAIN)
        return actions

    def _follow(self, step: StepState, now: float) -> list[Action]:
        """A step's log, by its state."""
        actions: list[Action] = []
        log = self._logs.get(step.key)
        if step.fence and (log is None or log.fence < step.fence):
            log, actions = self._begin(step, step.fence)
        if log is None or log.closed or 0 < step.fence < log.fence:
            return actions
        if step.log_size > log.known:
            log.known = step.log_size
            if step.state == "running":  # the stream may bring it yet
                log.asked = max(log.asked, now)
                self.due = min(self.due, now + ASK_AGAIN)
        if step.log_sha256:
            log.size, log.sha256 = step.log_size, step.log_sha256
        elif step.state == "done" and not step.log_size:
            log.size, log.sha256 = 0, hashlib.sha256().hexdigest()
        if step.state == "cancelled" and log.size < 0:
            return [*actions, *self._close(log, whole=True)]
        if step.state in ENDED:
            actions += self._end(log, now)
        return actions

    def _begin(self, step: StepState, fence: int) -> tuple[_Log, list[Action]]:
        log = _Log(step.key, fence, step.log, streamed=step.state not in ENDED)
        self._logs[step.key] = self._open[step.key] = log
        return log, [OpenLog(log.key, fence, log.name)]

    def _end(self, log: _Log, now: float) -> list[Action]:
        """A log's step has ended."""
        if log.ended:
            return []
        log.ended = True
        actions = self._check(log)
        if log.wants:
            linger = LINGER if log.streamed else 0.0  # the stream may bring the rest any moment
            log.asked = now - ASK_AGAIN + linger
            self.due = min(self.due, now + linger)
        return actions

    def _take(self, log: _Log, offset: int, data: bytes | memoryview, now: float) -> list[Action]:
        end = offset + len(data)
        log.known = max(log.known, end)
        if offset > log.have:
            actions: list[Action] = []
            if log.streamed and end - log.have > bounds.LOG_RANGE:
                log.streamed = False
                actions.append(Follow(log.key, on=False))
            return actions + (self._ask(log, now) if now - log.asked >= ASK_AGAIN else [])
        if end <= log.have:
            return self._check(log)
        fresh = data[log.have - offset :]
        action = AppendLog(log.key, log.have, fresh)
        log.digest.update(fresh)
        log.have = end
        log.misses = 0
        return [action, *self._check(log)]

    def _check(self, log: _Log) -> list[Action]:
        """Close a log that is whole; begin again, once, with one that is wrong."""
        if not log.ended or log.size < 0 or log.have < log.size:
            return []
        if log.have == log.size and log.digest.hexdigest() == log.sha256:
            return self._close(log, whole=True)
        if log.restarted:
            return self._close(log, whole=False)
        log.restarted = log.streamed = True
        log.have, log.known, log.digest = 0, log.size, hashlib.sha256()
        log.asked = float("-inf")
        return [OpenLog(log.key, log.fence, log.name)]

    def _ask(self, log: _Log, now: float) -> list[Action]:
        log.asked = now
        self.due = min(self.due, now + ASK_AGAIN)
        return [Send(LogRead(log.key, log.fence, log.have, bounds.LOG_RANGE))]

    def _close(self, log: _Log, *, whole: bool) -> list[Action]:
        log.closed = True
        self._open.pop(log.key, None)
        return [CloseLog(log.key, log.fence, whole)]


def _waiting(step: StepState) -> StepState:
    """All that is sure of a step once the broker has forgotten it."""
    return StepState(step.key, "waiting", name=step.name, kind=step.kind, log=step.log)
