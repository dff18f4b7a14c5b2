"""Attempts at steps, as rows of several pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from fabric.web.attempts import Try
from fabric.web.page import View, Web


class PhaseRow(View, frozen=True, kw_only=True):
    """A phase of an attempt."""

    name: str
    seconds: float


class AttemptRow(View, frozen=True, kw_only=True):
    """An attempt at a step."""

    key: str
    name: str  # of the step
    kind: str
    fence: str
    worker: str
    began: datetime
    seconds: float  # how long it took, or has run
    result: str  # "running" while it runs
    message: str
    phases: tuple[PhaseRow, ...]


async def tries(web: Web, about: str) -> Sequence[Try]:
    """The attempts at a step or on a worker, those that run last.  Errors as `Asks.query`."""
    known = await web.attempts.get(about)
    return [*known.ended, *known.running]


def attempt_row(one: Try, epoch: datetime) -> AttemptRow:
    """An attempt whose times count from ``epoch`` on."""
    info = one.info
    starts = [start for _, start in info.phases]
    ends = [*starts[1:], info.seconds]
    return AttemptRow(
        key=info.key,
        name=info.name,
        kind=info.kind,
        fence=str(info.fence),
        worker=info.worker,
        began=(epoch + timedelta(seconds=one.began)).replace(microsecond=0),
        seconds=info.seconds,
        result=info.result or "running",
        message=info.message,
        phases=tuple(
            PhaseRow(name=name, seconds=max(0.0, end - start))
            for (name, start), end in zip(info.phases, ends, strict=False)
        ),
    )
