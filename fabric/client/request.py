"""Mirrors the state of one request at the broker, and its logs.  Pure: no I/O.

`fabric.client.session` owns the connection, files and the clock::

    mirror = RequestMirror(BuildOrder(...))       # or a BuildGraph; or the id of a request
    actions = mirror.tick(now)                    # once at the start, then at least at mirror.due
    actions = mirror.update(update, now)          # an Update came
    actions = mirror.rejected(rejected, now)        # a Rejected came
    actions = mirror.piece(piece, now)            # a LogPiece came
    actions = mirror.published(piece, now)        # a published piece of log came
    mirror.unsent(message)                        # a message could not be sent now

Every call returns the actions to carry out, in order: `Send` to the broker; `Changed`, a step has
changed; `OpenLog`, `AppendLog`, `Follow`, `CloseLog` for its log; `Over`, the request ended.  Stop
once ``mirror.complete``: the request is over and every log is closed.  Then, or to stop following
earlier, carry out the actions of `leave`.
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
#: Seconds after which a submitted request is repeated; they double with each repetition.
SUBMIT_EVERY = 1.0
#: Steps whose logs are subscribed to before they begin, so that no short log is missed.
AHEAD = 1000
#: Steps of an update from which on it is acknowledged at once, so that the next one is small.
MANY = 50

OVER = frozenset({"done", "failed", "cancelled"})  # states of requests
BUILT = frozenset({"done", "cached"})  # states of steps


class Changed(msgspec.Struct, frozen=True):
    """A step has changed.  ``old`` is None if it was unknown."""

    old: StepState | None
    new: StepState


class Over(msgspec.Struct, frozen=True):
    """The request ended: "done", "failed" or "cancelled".  Its logs may still be incomplete.

    ``rejected``: the broker did not accept the request; ``message`` is the reason.
    """

    state: RequestState
    message: str
    rejected: bool = False


Action = LogAction | Changed | Over


class RequestMirror:
    """The state of one request, as far as known.

    ``wanted`` is the request to submit, or the id of one that was submitted elsewhere.
    """

    def __init__(self, wanted: BuildOrder | BuildGraph | str, logs: int = bounds.LOGS_OPEN) -> None:
        """``logs``: how many logs may be open at a time."""
        self.wanted = None if isinstance(wanted, str) else wanted
        self.request = wanted if isinstance(wanted, str) else wanted.request
        self.title = self.wanted.title if self.wanted else ""
        self.goals = wanted.goals if isinstance(wanted, BuildGraph) else ()  # keys, once known
        self.state: RequestState = "checking" if isinstance(wanted, BuildGraph) else "resolving"
        self.message = ""
        self.left = 0.0  # seconds expected until the end; 0: unknown
        self.next: tuple[str, ...] = ()  # names of the steps that should begin next
        self.warning = ""  # why it cannot go on until somebody acts
        self.steps: dict[str, StepState] = {}  # by key
        self.version = 0  # of the last update
        self.accepted = False  # the broker knows the request
        self.heard = float("-inf")  # time of the broker's last message
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
        """Poll, submit, or repeat questions, whatever is due."""
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
        """Take over an update."""
        if update.request != self.request:
            return []
        self.heard = now
        self.accepted, self._submits = True, 0
        if self.over:
            return []  # a restarted broker may not know that it is over
        if update.version <= self.version:
            if update.version == self.version:
                self._expect(update)
            return []
        self.version = update.version
        self._expect(update)
        self.title = update.title or self.title
        self.goals = update.goals or self.goals
        actions: list[Action] = []
        if update.goals and self.steps:  # then it has all steps
            listed = {step.key for step in update.steps}
            actions += self._reset_to_waiting(
                step for key, step in self.steps.items() if key not in listed
            )
        for step in update.steps:
            old = self.steps.get(step.key)
            if old is not None and old.state == "done" and step.state == "cached":
                continue  # repeated after a restart of the broker
            begins = old is None and not step.fence and step.state not in ENDED
            if begins and len(self.steps) < AHEAD:
                actions.append(Follow(step.key, on=True))
            if old != step:
                actions.append(self._change(step))
            actions += self._logs.follow(step, now)
        if update.state in OVER:
            actions.append(Over(update.state, update.message))
            actions += self._logs.end(now)  # also of steps that a restarted broker left out
        self.state, self.message = update.state, update.message
        if len(update.steps) > MANY:
            actions.append(Send(Poll(self.request, self.version)))
        return actions

    def _expect(self, update: Update) -> None:
        """Take over what changes without a new version."""
        self.left, self.next, self.warning = update.left, update.next, update.warning

    def rejected(self, rejected: Rejected, now: float) -> Sequence[Action]:
        """Handle that the broker did not accept a message."""
        self.heard = now
        if rejected.code == "no-log":
            return self._logs.missing(rejected.about)
        if rejected.about != self.request or rejected.code == "not-now" or self.over:
            return []  # "not-now": the message is repeated
        if rejected.code == "unknown-request" and self.wanted is not None:
            # The broker has restarted, or lost us: submit again; it adopts what runs.
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
        """Stop following the request; it is cancelled unless it is over or detached."""
        if self.wanted is None:
            return []  # only its submitter can end it by leaving
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
        """Note that a message could not be sent.  Log reads are repeated soon, others when due."""
        if isinstance(message, LogRead):
            self._logs.unsent(message)

    def published(self, piece: Published, now: float) -> Sequence[Action]:
        """Handle a published piece of a log, maybe of an attempt that no update has mentioned."""
        return self._logs.published(piece, None if self.over else self.steps.get(piece.key), now)

    def piece(self, piece: LogPiece, now: float) -> Sequence[Action]:
        """Handle a requested piece of a log."""
        self.heard = now
        return self._logs.piece(piece, now)


def _waiting(step: StepState) -> StepState:
    """The state of a step that the broker has forgotten."""
    return StepState(step.key, "waiting", name=step.name, kind=step.kind, log=step.log)
