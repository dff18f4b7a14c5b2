"""What the core hears and what it asks for.

Events are messages as they came (`Report`, `BuildOrder`, `BuildGraph`, `Poll`, `Leave`, `Command`)
and the ones below; effects are only those below.  The shell carries them out in order.
"""

from __future__ import annotations

import msgspec

from fabric.wire.messages import (
    Answer,
    BuildGraph,
    BuildOrder,
    Code,
    Command,
    Leave,
    Outcome,
    Poll,
    Report,
    Update,
)

# -- events --------------------------------------------------------------------------------


class Answered(msgspec.Struct, frozen=True):
    """The store's answer to `Ask`: which of its keys are there."""

    question: int
    present: frozenset[str]


class Unanswered(msgspec.Struct, frozen=True):
    """The store could not answer `Ask`."""

    question: int
    message: str


class Resolved(msgspec.Struct, frozen=True):
    """What a request asked for by `BuildOrder` comes to."""

    request: str
    submit: BuildGraph


class Unresolved(msgspec.Struct, frozen=True):
    """A request's definitions cannot be resolved, and why."""

    request: str
    message: str


class Inspected(msgspec.Struct, frozen=True):
    """The answer to `Inspect`: which of its artifacts are gone from the store.

    ``failure`` says why nothing is known of the others, if that is so.
    """

    keys: frozenset[str]
    failure: str = ""


class Unwritten(msgspec.Struct, frozen=True):
    """That a request began cannot be written down, and nobody was told that it has: forget it."""

    request: str


class Remembered(msgspec.Struct, frozen=True):
    """A request that was over before this run of the broker: the last that was told of it, who
    wanted it, and how many seconds ago it began.
    """

    outcome: Update
    requester: str
    ago: float


class Tick(msgspec.Struct, frozen=True):
    """Time has passed.  Due at least once a second, and at `Scheduler.next_due`."""


Event = (
    Report
    | BuildOrder
    | BuildGraph
    | Poll
    | Leave
    | Command
    | Resolved
    | Unresolved
    | Answered
    | Unanswered
    | Inspected
    | Unwritten
    | Remembered
    | Tick
)

# -- effects -------------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Ask the store which of these keys it has; answer with `Answered` or `Unanswered`."""

    question: int
    keys: tuple[str, ...]


class Inspect(msgspec.Struct, frozen=True):
    """A worker says that these artifacts are damaged.  Read their blobs, forget what is not whole,
    and answer with `Inspected` - always, if need be that the store does not answer.  Until then
    no second one comes: an inspection reads much, and whoever lies must not keep the store busy.
    """

    keys: tuple[str, ...]
    worker: str


class Resolve(msgspec.Struct, frozen=True):
    """Find out what this order needs; answer with `Resolved` or `Unresolved`."""

    order: BuildOrder


class Abandon(msgspec.Struct, frozen=True):
    """What `Resolve` is finding out for this request is no longer wanted."""

    request: str


class Desire(msgspec.Struct, frozen=True, gc=False):
    """Send this worker what `Scheduler.desired` says."""

    worker: str


class Changed(msgspec.Struct, frozen=True, gc=False):
    """There is news for this request: see `Scheduler.update`."""

    request: str
    over: bool


class Refuse(msgspec.Struct, frozen=True):
    """Tell the sender of the event that it cannot be served.  ``code`` as in `Rejected`."""

    about: str
    code: Code
    reason: str


class Tell(msgspec.Struct, frozen=True):
    """Send this to the sender of the event."""

    answer: Answer


class Drained(msgspec.Struct, frozen=True):
    """An operator wants a worker to get nothing new, or to get work again: remember it."""

    worker: str
    on: bool


class Opened(msgspec.Struct, frozen=True):
    """A request began: remember its intent, to be handed in again after a restart."""

    request: str
    title: str
    intent: BuildOrder | BuildGraph


class Closed(msgspec.Struct, frozen=True):
    """A request is over, with its last state."""

    request: str
    state: str


class Began(msgspec.Struct, frozen=True, gc=False):
    """An attempt began: its log may come.  ``found``: it ran already, unknown to this core."""

    key: str
    fence: int
    worker: str
    found: bool


class Ended(msgspec.Struct, frozen=True, gc=False):
    """An attempt ended.  ``outcome`` is None if its worker was lost, or it was killed."""

    key: str
    fence: int
    worker: str
    kind: str
    name: str
    arch: str
    since: float
    outcome: Outcome | None


class Learned(msgspec.Struct, frozen=True, gc=False):
    """A verified build took this long."""

    kind: str
    name: str
    arch: str
    seconds: float


Effect = (
    Ask
    | Inspect
    | Resolve
    | Abandon
    | Desire
    | Changed
    | Refuse
    | Tell
    | Drained
    | Opened
    | Closed
    | Began
    | Ended
    | Learned
)
