"""One worker: what it builds, what it has built, and its faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from fabric.web.asks import NotFound
from fabric.web.attempts import Try
from fabric.web.page import Page, View, Web
from fabric.web.pages.attempts import AttemptRow, attempt_row, tries
from fabric.web.pages.facts import RESULTS, Count, Number, Part, Word, counts, part
from fabric.web.pages.farm import WorkerRow, worker_row
from fabric.wire.messages import WorkerInfo


class WorkerQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which attempts are listed."""

    state: Word = ""  # a result
    page: Number = 1


class WorkerView(View, frozen=True, kw_only=True):
    """A worker."""

    name: str
    worker: WorkerRow | None  # None: it is not connected, and only its past is known
    features: tuple[str, ...]  # labels that steps may require
    results: tuple[Count, ...]  # of its attempts, as far as the broker remembers
    attempts: tuple[AttemptRow, ...]  # the last one first
    part: Part


def view(
    name: str,
    workers: Sequence[WorkerInfo],
    attempts: Sequence[Try],
    query: WorkerQuery,
    now: datetime,
    epoch: datetime,
) -> WorkerView:
    """The worker; times of attempts count from ``epoch`` on.  NotFound if it is unknown."""
    info = next((one for one in workers if one.name == name), None)
    if info is None and not attempts:
        raise NotFound(f"{name[:80]}: the broker knows no such worker")
    chosen = [
        one for one in reversed(attempts) if query.state in ("", one.info.result or "running")
    ]
    shown, which = part(chosen, query.page)
    return WorkerView(
        name=name,
        worker=worker_row(info, now) if info else None,
        features=info.features if info else (),
        results=counts((one.info.result or "running" for one in attempts), RESULTS),
        attempts=tuple(attempt_row(one, epoch) for one in shown),
        part=which,
    )


async def make(web: Web, path: Mapping[str, str], query: WorkerQuery) -> WorkerView:
    name = path["name"]
    workers = await web.farm.query("workers")
    attempts = await tries(web, name) if name else ()
    return view(name, workers.workers, attempts, query, workers.at, web.attempts.epoch)


routes = [
    Page(
        path="/workers/{name}",
        template="worker.html",
        summary="A worker, with its attempts",
        view=WorkerView,
        make=make,
        query=WorkerQuery,
    )
]
