"""One build, with its steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from fabric.web.asks import Heard, NotFound
from fabric.web.mirrors import Mirror
from fabric.web.page import Page, View, Web
from fabric.web.pages.facts import (
    STATES,
    Count,
    Number,
    Part,
    RequestRow,
    StepRow,
    Word,
    counts,
    part,
    request_row,
    step_row,
)
from fabric.wire.messages import RequestInfo, State

_PLACE = {state: place for place, state in enumerate(STATES)}


class BuildQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which steps are listed."""

    state: State | Literal[""] = ""
    name: Word = ""  # a part of the name
    page: Number = 1


class BuildView(View, frozen=True, kw_only=True):
    """A build, and a part of its steps."""

    build: RequestRow
    goals: tuple[StepRow, ...]  # what is built in the end
    next: tuple[str, ...]  # names of the steps that should begin next
    states: tuple[Count, ...]  # of all steps
    steps: tuple[StepRow, ...]
    part: Part
    warning: str = ""  # why it cannot go on until somebody acts, or a fault of the controller


def view(info: RequestInfo, mirror: Mirror, query: BuildQuery, now: datetime) -> BuildView:
    """The build as the broker describes it."""
    wanted = query.name.casefold()
    chosen = [
        known
        for known in mirror.steps.values()
        if query.state in ("", known.state.state) and wanted in known.state.name.casefold()
    ]
    chosen.sort(key=lambda known: (_PLACE[known.state.state], known.state.name))
    shown, which = part(chosen, query.page)
    return BuildView(
        build=request_row(info, now),
        goals=tuple(step_row(mirror.steps[key]) for key in mirror.goals if key in mirror.steps),
        next=mirror.update.next,
        states=counts((known.state.state for known in mirror.steps.values()), STATES),
        steps=tuple(map(step_row, shown)),
        part=which,
        warning=mirror.update.warning,
    )


def find(answer: Heard, id: str) -> RequestInfo:
    """The request of that id, with its age of now.  NotFound if there is none."""
    for one in answer.requests:
        if one.request == id:
            return msgspec.structs.replace(one, since=one.since + answer.age)
    raise NotFound(f"{id}: no such build; the broker forgets those that ended long ago")


async def make(web: Web, path: Mapping[str, str], query: BuildQuery) -> BuildView:
    answer = await web.farm.query("requests")
    info = find(answer, path["id"])
    mirror = await web.mirrors.get(info.request)
    return view(info, mirror, query, datetime.now(UTC))


routes = [
    Page(
        path="/builds/{id}",
        template="build.html",
        summary="A build, with its steps",
        view=BuildView,
        make=make,
        query=BuildQuery,
    )
]
