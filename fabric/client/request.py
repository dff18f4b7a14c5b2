"""The initiator's side of the protocol, pure: one request as the broker tells it, and its logs.

The shell around it (`fabric.initiator`) owns sockets, files and the clock::

    mirror = RequestMirror(BuildOrder(...))       # or a BuildGraph; or the id of a request
    actions = mirror.tick(now)                    # once at the start, then at least at mirror.due
    actions = mirror.update(update, now)          # an Update came
    actions = mirror.rejected(rejected, now)        # a Rejected came
    actions = mirror.piece(piece, now)            # a LogPiece came
    actions = mirror.published(piece, now)        # a published piece of log came
    mirror.unsent(message)                        # a message could not be sent now

Every call returns the actions to carry out, in order: `Send` to the broker; `Changed`, a step
has news; `OpenLog`, `AppendLog`, `Follow`, `CloseLog` for its log; `Over`, the request ended.  Stop
once ``mirror.complete``: the request is over and every log is closed; then do what `leave` says.
To stop following a detached request, or somebody else's, do the same at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fabric import bounds
from fabric.client.request_logs import (
    ENDED,
    Follow,
    LogAction,
    LogMirror,
    Send,
)
from fabric.wire.messages import (
    BuildGraph,
    BuildOrder,
    Leave,
    LogPiece,
    LogRead,
    Poll,
    Published,
    Rejected,
    RequestState,
    StepState,
    Update,
)

#: Seconds between polls.
POLL_EVERY = 1.0
#: A submit is repeated after this long, then twice, four times ... as long.
SUBMIT_EVERY = 1.0
#: Logs of so many steps are subscribed to before they begin: what is over soon is not missed.
AHEAD = 1000
#: An update with more steps than this is acknowledged at once, to keep the next one small.
MANY = 50

OVER = frozenset({"done", "failed", "cancelled"})  # requests
BUILT = frozenset({"done", "cached"})  # steps


class Changed(msgspec.Struct, frozen=True):
    """A step has news.  ``old`` is None if it is the first."""

    old: StepState | None
    new: StepState


class Over(msgspec.Struct, frozen=True):
    """The request ended: "done", "failed" or "cancelled".  Logs may still come.

    ``refused``: the broker does not take the request, and ``message`` says why.
    """

    state: RequestState
    message: str
    rejected: bool = False


Action = LogAction | Changed | Over


class RequestMirror:
    """One request, as far as is known here.

    ``wanted`` is what to ask for, or the id of a request that somebody asked for already.
    """

    def __init__(self, wanted: BuildOrder | BuildGraph | str, logs: int = bounds.LOGS_OPEN) -> None:
        """``logs``: so many may be open at once."""
        self.wanted = None if isinstance(wanted, str) else wanted
        self.request = wanted if isinstance(wanted, str) else wanted.request
        self.title = self.wanted.title if self.wanted else ""
        self.goals = wanted.goals if isinstance(wanted, BuildGraph) else ()  # keys, once known
        self.state: RequestState = "checking" if isinstance(wanted, BuildGraph) else "resolving"
        self.message = ""
        self.left = 0.0  # seconds expected until the end; 0: unknown
        self.warning = ""  # what keeps it from going on, if somebody has to do something about it
        self.steps: dict[str, StepState] = {}  # those the broker spoke of
        self.version = 0
        self.accepted = False  # the broker knows the request
        self.heard = float("-inf")  # when it last spoke
        self._poll_due = float("-inf")
        self._logs = LogMirror(logs)
        self._submits = 0

    @property
    def due(self) -> float:
        """When `tick` is due."""
        return min(self._poll_due, self._logs.due)

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def complete(self) -> bool:
        """Over, and every log closed."""
        return self.over and self._logs.complete

    # -- the request -----------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: poll, or submit, or ask again."""
        actions: list[Action] = []
        if now >= self._poll_due:
            self._poll_due = now + POLL_EVERY
            if self.accepted:
                actions.append(Send(Poll(self.request, self.version)))
            elif not self.over:
                self._poll_due = now + SUBMIT_EVERY * 2 ** min(self._submits, 3)
                self._submits += 1
                actions.append(Send(self.wanted or Poll(self.request, self.version)))
        return [*actions, *self._logs.tick(now, over=self.over)]

    def update(self, update: Update, now: float) -> list[Action]:
        """The broker tells news."""
        if update.request != self.request:
            return []
        self.heard = now
        self.accepted, self._submits = True, 0
        if self.over:
            return []  # a broker that was restarted may not know
        if update.version <= self.version:
            if update.version == self.version:
                self.left, self.warning = update.left, update.warning
            return []
        self.version, self.left, self.warning = update.version, update.left, update.warning
        self.title = update.title or self.title
        self.goals = update.goals or self.goals
        actions: list[Action] = []
        if update.goals and self.steps:  # then it tells all that is known
            listed = {step.key for step in update.steps}
            actions += self._reset_to_waiting(
                step for key, step in self.steps.items() if key not in listed
            )
        for step in update.steps:
            old = self.steps.get(step.key)
            if old is not None and old.state == "done" and step.state == "cached":
                continue  # told again after a restart of the broker
            begins = old is None and not step.fence and step.state not in ENDED
            if begins and len(self.steps) < AHEAD:
                actions.append(Follow(step.key, on=True))
            if old != step:
                actions.append(self._change(step))
            actions += self._logs.follow(step, now)
        if update.state in OVER:
            actions.append(Over(update.state, update.message))
            actions += self._logs.end(now)  # whatever a restarted broker never spoke of again
        self.state, self.message = update.state, update.message
        if len(update.steps) > MANY:
            actions.append(Send(Poll(self.request, self.version)))
        return actions

    def rejected(self, rejected: Rejected, now: float) -> Sequence[Action]:
        """The broker cannot serve something asked."""
        self.heard = now
        if rejected.code == "no-log":
            return self._logs.missing(rejected.about)
        if rejected.about != self.request or rejected.code == "not-now" or self.over:
            return []  # and asked for again, if it was not now
        if rejected.code == "unknown-request" and self.wanted is not None:
            # The broker has been restarted, or had given us up: what it builds, it finds again.
            if not self.accepted:
                return []
            self.accepted = False
            self._poll_due = now
            return self._reset_to_waiting(
                step for step in self.steps.values() if step.state not in ENDED
            )
        self.accepted = False
        self.state, self.message = "failed", rejected.reason
        return [*self._logs.give_up(), Over("failed", rejected.reason, rejected=True)]

    def leave(self) -> list[Action]:
        """The user wants it no more, or it is complete, or is detached and goes on without us."""
        if self.wanted is None:
            return []  # it ends if those who asked for it leave
        if not self.over and not self.wanted.detach:
            self.state = "cancelled"
        return [Send(Leave(self.request))]

    def _reset_to_waiting(self, steps: Iterable[StepState]) -> list[Action]:
        """Mark these steps as waiting, except those that were built."""
        unsure = [(step, _waiting(step)) for step in steps if step.state not in BUILT]
        return [self._change(waiting) for step, waiting in unsure if step != waiting]

    def _change(self, step: StepState) -> Changed:
        old = self.steps.get(step.key)
        self.steps[step.key] = step
        return Changed(old, step)

    # -- logs ------------------------------------------------------------------------------

    def unsent(self, message: BuildOrder | BuildGraph | Poll | Leave | LogRead) -> None:
        """It was not sent.  A question for a log is put again soon; all else will be anyway."""
        if isinstance(message, LogRead):
            self._logs.unsent(message)

    def published(self, piece: Published, now: float) -> Sequence[Action]:
        """A published piece of a log, maybe of an attempt that no update has told of yet."""
        return self._logs.published(piece, None if self.over else self.steps.get(piece.key), now)

    def piece(self, piece: LogPiece, now: float) -> Sequence[Action]:
        """A piece that was asked for."""
        self.heard = now
        return self._logs.piece(piece, now)


def _waiting(step: StepState) -> StepState:
    """All that is sure of a step once the broker has forgotten it."""
    return StepState(step.key, "waiting", name=step.name, kind=step.kind, log=step.log)
