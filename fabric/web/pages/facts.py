"""Turns messages of the broker into facts for pages: absolute times, counts, parts of lists."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

from msgspec import Meta

from fabric import bounds
from fabric.client.request import OVER
from fabric.web.mirrors import KnownStep
from fabric.web.page import View
from fabric.wire.messages import RequestInfo, RequestState, State, StepState

T = TypeVar("T")

#: Fields of queries.
Number = Annotated[int, Meta(ge=1, le=1_000_000)]
Word = Annotated[str, Meta(max_length=bounds.NAME)]

#: Order in which steps are listed.
STATES: tuple[State, ...] = (
    "failed", "running", "ready", "waiting", "done", "cached", "cancelled",
)  # fmt: skip

#: Results of attempts, in the order in which they are counted.
RESULTS = ("running", "done", "failed", "fault", "lost", "refused", "cancelled")


class Part(View, frozen=True, kw_only=True):
    """The part of a list that a page shows."""

    page: int  # from 1 on
    pages: int
    first: int  # number of its first row, from 1 on; 0 if it is empty
    last: int
    total: int  # rows on all pages


class Count(View, frozen=True, kw_only=True):
    """How many things are in a state."""

    state: str
    count: int


class StepRow(View, frozen=True, kw_only=True):
    """A step of a build."""

    key: str
    name: str
    kind: str
    state: State
    worker: str = ""
    phase: str = ""
    fence: str = "0"  # number of its attempt; "0": none has begun
    began: datetime | None = None  # when its attempt began, if it runs
    expected: float = 0.0  # seconds it took before; 0: unknown
    seconds: float = 0.0  # how long it took, once it has ended
    message: str = ""  # why it failed, why it waits, or why it need not be built
    fault: bool = False  # machines or the store failed, not the build
    log_size: int = 0  # bytes
    failed_phase: str = ""
    failed_command: str = ""


class RequestRow(View, frozen=True, kw_only=True):
    """A build."""

    id: str
    title: str
    system: str  # its name, if the title tells it
    requester: str
    state: RequestState
    since: datetime
    priority: int = 0
    detached: bool = False
    done: int = 0  # steps built
    cached: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    total: int = 0  # steps that are not cached, as far as known
    left: float = 0.0  # seconds expected until the end; 0: unknown
    message: str = ""  # why nothing of it runs, or how it failed


def part(rows: Sequence[T], page: int, size: int = bounds.WEB_ROWS) -> tuple[Sequence[T], Part]:
    """The rows of a page, and which they are; the last page if there are fewer."""
    pages = max(1, -(-len(rows) // size))
    page = min(page, pages)
    first = (page - 1) * size
    shown = rows[first : first + size]
    facts = Part(
        page=page,
        pages=pages,
        first=first + 1 if shown else 0,
        last=first + len(shown),
        total=len(rows),
    )
    return shown, facts


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts worker2 before worker10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def counts(states: Iterable[str], order: Iterable[str]) -> tuple[Count, ...]:
    """How many are in each state, in this order; states of none are left out."""
    tally = Counter(states)
    return tuple(Count(state=one, count=tally[one]) for one in order if tally[one])


def before(now: datetime, seconds: float) -> datetime:
    """The moment so many seconds before, to the second."""
    return (now - timedelta(seconds=seconds)).replace(microsecond=0)


def moment_of(unix: float) -> datetime | None:
    """A moment in Unix time, to the second; None for 0, which means that it was not recorded."""
    with contextlib.suppress(ValueError, OverflowError, OSError):  # what a store says
        return datetime.fromtimestamp(int(unix), UTC) if unix else None
    return None


def step_row(known: KnownStep) -> StepRow:
    """A step of a request."""
    return step_of(known.state, known.began)


def step_of(step: StepState, began: datetime | None) -> StepRow:
    """A step whose attempt began at this moment."""
    return StepRow(
        key=step.key,
        name=step.name or step.key[:12],
        kind=step.kind,
        state=step.state,
        worker=step.worker,
        phase=step.phase,
        fence=str(step.fence),
        began=began.replace(microsecond=0) if began else None,
        expected=step.expected,
        seconds=step.seconds,
        message=step.message,
        fault=step.fault,
        log_size=step.log_size,
        failed_phase=step.failed_phase,
        failed_command=step.failed_command,
    )


def running_of(step: StepState, now: datetime) -> StepRow:
    """A step that a worker runs."""
    return step_of(step, before(now, step.running_for))


def request_row(info: RequestInfo, now: datetime) -> RequestRow:
    """A row in the list of builds."""
    waiting = info.total - info.done - info.cached - info.failed - info.running
    return RequestRow(
        id=info.request,
        title=info.title,
        system=system_of(info.title),
        requester=info.requester,
        state=info.state,
        since=before(now, info.since),
        priority=info.priority,
        detached=info.detached,
        done=info.done,
        cached=info.cached,
        failed=info.failed,
        running=info.running,
        waiting=max(0, waiting) if info.state not in OVER else 0,
        total=max(info.total - info.cached, info.done),
        left=info.left,
        message=info.message,
    )


def system_of(title: str) -> str:
    """The system in the title of a build, "SYSTEM for USER"; "" if it has none."""
    return title.rpartition(" for ")[0]
