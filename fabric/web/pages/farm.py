"""The farm: its workers, the queue by requester, and what it has done lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Literal, get_args

import msgspec

from fabric.client.request import OVER
from fabric.web.attempts import Try
from fabric.web.page import Page, View, Web
from fabric.web.pages.facts import (
    Count,
    Number,
    Part,
    StepRow,
    before,
    counts,
    natural,
    part,
    running_of,
)
from fabric.wire.messages import STORING, AttemptInfo, RequestInfo, WorkerInfo

WorkerState = Literal["busy", "idle", "resting", "refusing", "silent", "draining", "drained"]

#: Requesters in the queue, at most.
MANY = 50


class FarmQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which workers are listed."""

    state: WorkerState | Literal[""] = ""
    page: Number = 1


class WorkerRow(View, frozen=True, kw_only=True):
    """A worker."""

    name: str
    state: WorkerState
    arch: str
    slots: int
    used: int  # slots in use
    heard: datetime  # its last report
    since: datetime  # its first report
    message: str = ""  # why it rests or refuses
    running: tuple[StepRow, ...] = ()
    free_disk: int = 0  # bytes; 0: unknown
    free_memory: int = 0  # bytes; 0: unknown


class QueueRow(View, frozen=True, kw_only=True):
    """The live builds of a requester."""

    requester: str
    builds: int
    running: int  # steps
    waiting: int  # steps, as far as known
    left: float  # seconds expected until the last ends; 0: unknown


class FarmView(View, frozen=True, kw_only=True):
    """The farm, or the builds on this machine."""

    slots: int
    used: int
    building: int  # builds that are not over
    running: int  # steps
    waiting: int  # steps
    built_hour: int  # steps built in the last hour
    failed_hour: int  # steps that failed in the last hour
    built_today: int  # steps built in builds of the last 24 hours
    cached_today: int  # steps of these builds that were cached
    queue: tuple[QueueRow, ...]
    requesters: int  # in the whole queue
    states: tuple[Count, ...]  # of all workers
    workers: tuple[WorkerRow, ...]
    part: Part
    warning: str = ""  # a fault of the controller itself


def view(
    workers: Sequence[WorkerInfo],
    requests: Sequence[RequestInfo],
    hour: Sequence[AttemptInfo],
    query: FarmQuery,
    now: datetime,
    warning: str = "",
) -> FarmView:
    """The farm as the broker describes it; ``hour``: attempts that ended in the last hour."""
    chosen = [one for one in workers if query.state in ("", one.state)]
    chosen.sort(key=lambda one: natural(one.name))
    shown, which = part(chosen, query.page)
    queue = _queue(requests)
    today = [one for one in requests if one.since < 86400]
    return FarmView(
        slots=sum(one.slots for one in workers),
        used=sum(map(used, workers)),
        building=sum(one.builds for one in queue),
        running=sum(one.running for one in queue),
        waiting=sum(one.waiting for one in queue),
        built_hour=sum(one.result == "done" for one in hour),
        failed_hour=sum(one.result == "failed" for one in hour),
        built_today=sum(one.done for one in today),
        cached_today=sum(one.cached for one in today),
        queue=tuple(queue[:MANY]),
        requesters=len(queue),
        states=counts((one.state for one in workers), get_args(WorkerState)),
        workers=tuple(worker_row(one, now) for one in shown),
        part=which,
        warning=warning,
    )


def worker_row(info: WorkerInfo, now: datetime) -> WorkerRow:
    """A worker as the broker describes it."""
    return WorkerRow(
        name=info.name,
        state=info.state,
        arch=info.arch,
        slots=info.slots,
        used=used(info),
        heard=before(now, info.heard),
        since=before(now, info.since),
        message=info.message,
        running=tuple(running_of(one, now) for one in info.running),
        free_disk=info.free_disk,
        free_memory=info.free_memory,
    )


def used(info: WorkerInfo) -> int:
    """The slots of a worker in use."""
    return sum(one.phase != STORING for one in info.running)


def _queue(requests: Sequence[RequestInfo]) -> list[QueueRow]:
    """The live builds by requester, the one with most steps first."""
    live: dict[str, list[RequestInfo]] = {}
    for one in requests:
        if one.state not in OVER:
            live.setdefault(one.requester, []).append(one)
    rows = [
        QueueRow(
            requester=requester,
            builds=len(infos),
            running=sum(one.running for one in infos),
            waiting=sum(
                max(0, one.total - one.done - one.cached - one.failed - one.running)
                for one in infos
            ),
            left=max(one.left for one in infos),
        )
        for requester, infos in live.items()
    ]
    return sorted(rows, key=lambda row: (-row.running - row.waiting, row.requester))


async def make(web: Web, _: Mapping[str, str], query: FarmQuery) -> FarmView:
    workers = await web.farm.query("workers")
    requests = await web.farm.query("requests")
    known = await web.attempts.get("")
    hour = _since(known.ended, web.attempts.now - 3600)
    return view(workers.workers, requests.requests, hour, query, workers.at, workers.warning)


def _since(ended: Sequence[Try], moment: float) -> list[AttemptInfo]:
    """The last of some attempts: those that ended after a moment."""
    return [one.info for one in takewhile(lambda one: one.ended >= moment, reversed(ended))]


routes = [
    Page(
        path="/",
        template="farm.html",
        summary="The workers, and the queue by requester",
        view=FarmView,
        make=make,
        query=FarmQuery,
    )
]
