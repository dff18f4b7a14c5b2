"""Defines the events that the core handles, and the effects that follow from them.

An event is a message of a peer (`Report`, `BuildOrder`, `BuildGraph`, `Poll`, `Leave`, `Command`)
or one of the events below.  The shell carries out effects in order.
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
    StepSpec,
    Update,
)

# -- events --------------------------------------------------------------------------------


class StoreAnswered(msgspec.Struct, frozen=True):
    """The store answered `QueryStore`: ``present`` are the keys that it has.

    The outputs of those in ``familiar`` were known before they were built.
    """

    question: int
    present: frozenset[str]
    familiar: frozenset[str] = frozenset()


class StoreCompared(msgspec.Struct, frozen=True):
    """The answer to `CompareStore`: the store has the steps in ``equal`` now."""

    question: int
    equal: frozenset[str]


class StoreFailed(msgspec.Struct, frozen=True):
    """The store failed to answer `QueryStore` or `CompareStore`."""

    question: int
    message: str


class Resolved(msgspec.Struct, frozen=True):
    """The build order of a request is resolved to this graph."""

    request: str
    graph: BuildGraph


class Unresolved(msgspec.Struct, frozen=True):
    """The build order of a request cannot be resolved, and why."""

    request: str
    message: str


class StoreInspected(msgspec.Struct, frozen=True):
    """The store has been inspected for `InspectStore`: ``keys`` are the artifacts that are gone.

    With ``failure``, nothing is known of the others.
    """

    keys: frozenset[str]
    failure: str = ""


class NotJournaled(msgspec.Struct, frozen=True):
    """A request could not be journaled, and no peer was told that it began: forget it."""

    request: str


class Remembered(msgspec.Struct, frozen=True):
    """A request was over before this run of the broker.

    ``outcome`` is its last update.  It began ``ago`` seconds ago, and ended ``ended`` seconds ago.
    """

    outcome: Update
    requester: str
    ago: float
    ended: float = 0.0


class Reopened(msgspec.Struct, frozen=True):
    """A request goes on that began ``ago`` seconds ago, in a former run of the broker."""

    intent: BuildOrder | BuildGraph
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
    | StoreAnswered
    | StoreCompared
    | StoreFailed
    | StoreInspected
    | NotJournaled
    | Remembered
    | Reopened
    | Tick
)

# -- effects -------------------------------------------------------------------------------


class Result(msgspec.Struct, frozen=True, gc=False):
    """What an attempt says that it has built and stored."""

    key: str
    fence: int
    worker: str
    manifest: str  # its digest


class QueryStore(msgspec.Struct, frozen=True, gc=False):
    """Query the store for these keys, and answer with `StoreAnswered` or `StoreFailed`.

    ``built``: the steps among them that workers reported done.  ``results`` are to be countersigned
    if the store has them.
    """

    question: int
    keys: tuple[str, ...]
    built: tuple[StepSpec, ...] = ()
    results: tuple[Result, ...] = ()


class CompareStore(msgspec.Struct, frozen=True, gc=False):
    """Look for steps that were built from equal contents, and store these as equal to them.

    Answer with `StoreCompared` or `StoreFailed`.
    """

    question: int
    steps: tuple[StepSpec, ...]


class InspectStore(msgspec.Struct, frozen=True):
    """A worker found these artifacts damaged: read their blobs, remove those that are not whole.

    Always answer with `StoreInspected`, if need be with a failure.  No second `InspectStore` comes
    before that: an inspection reads much, and a worker that lies must not keep the store busy.
    """

    keys: tuple[str, ...]
    worker: str


class Resolve(msgspec.Struct, frozen=True):
    """Resolve this build order, and answer with `Resolved` or `Unresolved`."""

    order: BuildOrder


class Abandon(msgspec.Struct, frozen=True):
    """The answer to `Resolve` for this request is no longer wanted."""

    request: str


class SendDesired(msgspec.Struct, frozen=True, gc=False):
    """Send this worker `Scheduler.desired`."""

    worker: str


class Changed(msgspec.Struct, frozen=True, gc=False):
    """There is news of this request: see `Scheduler.update`."""

    request: str
    over: bool


class Reject(msgspec.Struct, frozen=True):
    """Reject the event for its sender.  ``code`` as in `Rejected`."""

    about: str
    code: Code
    reason: str


class Reply(msgspec.Struct, frozen=True):
    """Send this to the sender of the event."""

    answer: Answer


class Drained(msgspec.Struct, frozen=True):
    """An operator drained a worker or resumed it: journal it."""

    worker: str
    on: bool


class Opened(msgspec.Struct, frozen=True):
    """A request began: journal its intent, to be submitted again after a restart."""

    request: str
    title: str
    intent: BuildOrder | BuildGraph


class Closed(msgspec.Struct, frozen=True):
    """A request is over, in this state."""

    request: str
    state: str


class Began(msgspec.Struct, frozen=True, gc=False):
    """An attempt began, so its log may come.  ``found``: it ran already, unknown to this core."""

    key: str
    fence: int
    worker: str
    found: bool


class Ended(msgspec.Struct, frozen=True, gc=False):
    """An attempt ended.  ``outcome`` is None if its worker was lost or the attempt was killed."""

    key: str
    fence: int
    worker: str
    kind: str
    name: str
    arch: str
    since: float
    outcome: Outcome | None
    phases: tuple[tuple[str, float], ...] = ()  # as in `model.Attempt`


class Learned(msgspec.Struct, frozen=True, gc=False):
    """A verified build took this many seconds."""

    kind: str
    name: str
    arch: str
    seconds: float


Effect = (
    QueryStore
    | CompareStore
    | InspectStore
    | Resolve
    | Abandon
    | SendDesired
    | Changed
    | Reject
    | Reply
    | Drained
    | Opened
    | Closed
    | Began
    | Ended
    | Learned
)
