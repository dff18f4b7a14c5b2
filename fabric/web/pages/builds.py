"""The list of builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, get_args

import msgspec

from fabric.client.request import OVER
from fabric.web.page import Page, View, Web
from fabric.web.pages.facts import Count, Number, Part, RequestRow, Word, counts, part
from fabric.web.pages.facts import request_row as row
from fabric.wire.messages import RequestInfo, RequestState


class BuildsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which builds are listed."""

    user: Word = ""  # the requester
    system: Word = ""  # a part of the title
    state: RequestState | Literal["", "live"] = ""  # live: not over
    page: Number = 1


class BuildsView(View, frozen=True, kw_only=True):
    """The builds that the broker knows, the newest first."""

    builds: tuple[RequestRow, ...]
    part: Part
    states: tuple[Count, ...]  # of builds that match the other filters
    users: tuple[str, ...]  # all requesters
    total: int  # builds, without filters
    warning: str = ""


def view(
    requests: Sequence[RequestInfo], query: BuildsQuery, now: datetime, warning: str = ""
) -> BuildsView:
    """The list as the broker describes it."""
    wanted = query.system.casefold()
    matching = [
        one
        for one in requests
        if query.user in ("", one.requester) and wanted in one.title.casefold()
    ]
    chosen = [one for one in matching if _in_state(one, query.state)]
    chosen.sort(key=lambda one: (one.state in OVER, one.since))
    shown, which = part(chosen, query.page)
    return BuildsView(
        builds=tuple(row(one, now) for one in shown),
        part=which,
        states=counts((one.state for one in matching), get_args(RequestState)),
        users=tuple(sorted({one.requester for one in requests if one.requester})),
        total=len(requests),
        warning=warning,
    )


def _in_state(info: RequestInfo, state: str) -> bool:
    if state == "live":
        return info.state not in OVER
    return state in ("", info.state)


async def make(web: Web, _: Mapping[str, str], query: BuildsQuery) -> BuildsView:
    answer = await web.farm.query("requests")
    return view(answer.requests, query, answer.at, answer.warning)


routes = [
    Page(
        path="/builds",
        template="builds.html",
        summary="The builds, the newest first",
        view=BuildsView,
        make=make,
        query=BuildsQuery,
    )
]
