"""What the core hears and what it asks for.

Events are messages as they came (`Report`, `Submit`, `Poll`, `Leave`) and the ones below;
effects are only those below.  The shell carries them out in order.
"""

from __future__ import annotations

import msgspec

from fabric.wire.messages import Code, Leave, Outcome, Poll, Report, Submit

# -- events --------------------------------------------------------------------------------


class Answered(msgspec.Struct, frozen=True):
    """The store's answer to `Ask`: which of its keys are there."""

    question: int
    present: frozenset[str]


class Unanswered(msgspec.Struct, frozen=True):
    """The store could not answer `Ask`."""

    question: int
    message: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed.  Due at least once a second, and at `Scheduler.next_due`."""


Event = Report | Submit | Poll | Leave | Answered | Unanswered | Tick

# -- effects -------------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True):
    """Ask the store which of these keys it has; answer with `Answered` or `Unanswered`."""

    question: int
    keys: tuple[str, ...]


class Desire(msgspec.Struct, frozen=True):
    """Send this worker what `Scheduler.desired` says."""

    worker: str


class Changed(msgspec.Struct, frozen=True):
    """There is news for this request: see `Scheduler.update`."""

    request: str
    over: bool


class Refuse(msgspec.Struct, frozen=True):
    """Tell the sender of the event that it cannot be served.  ``code`` as in `Refused`."""

    about: str
    code: Code
    reason: str


class Opened(msgspec.Struct, frozen=True):
    """A request began: remember its intent."""

    request: str
    title: str


class Closed(msgspec.Struct, frozen=True):
    """A request is over, with its last state."""

    request: str
    state: str


class Began(msgspec.Struct, frozen=True):
    """An attempt began: its log may come.  ``found``: it ran already, unknown to this core."""

    key: str
    fence: int
    worker: str
    found: bool


class Ended(msgspec.Struct, frozen=True):
    """An attempt ended.  ``outcome`` is None if its worker was lost, or it was killed."""

    key: str
    fence: int
    worker: str
    kind: str
    name: str
    arch: str
    since: float
    outcome: Outcome | None


class Learned(msgspec.Struct, frozen=True):
    """A verified build took this long."""

    kind: str
    name: str
    arch: str
    seconds: float


Effect = Ask | Desire | Changed | Refuse | Opened | Closed | Began | Ended | Learned
