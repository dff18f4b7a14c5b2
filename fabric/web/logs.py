"""The page of a log, and what it reads: bytes, rows, what comes, and a search.

All addresses are below ``/steps/KEY/log``.  ``?fence=N`` names an attempt; the latest one is shown
without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from fabric import bounds
from fabric.errors import MachineFault
from fabric.host.terminal import printable
from fabric.web.asks import BadAddress, NotFound
from fabric.web.log_copy import LogAttempt, LogCopy
from fabric.web.log_file import PatternError, Rows, finder
from fabric.web.page import Page, View, Web
from fabric.wire.messages import Count

#: Bytes of rows that are sent at once, without another wish.
ROWS = 64 * bounds.KIB
#: Bytes of a stream that are sent at once.
PIECE = 64 * bounds.KIB
#: Seconds between two pieces of a stream: many viewers cost few packets.
FLUSH_EVERY = 0.05
#: Bytes that a viewer may be behind; then the stream ends, and the viewer goes on at the end.
LAG = bounds.MIB
#: Seconds without a new byte after which a stream ends, so that both sides know the other is there.
SILENCE = 20.0
#: Most matches of one search, and seconds that it takes.
MATCHES = 500
SEARCH_SECONDS = 5.0

Q = TypeVar("Q", bound=msgspec.Struct)

Offset = Annotated[int, Meta(ge=0, le=2**53)]
_KEY = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,16})-(\d{0,16})")


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which log."""

    fence: Count = 0  # 0: of the latest attempt
    tail: Annotated[int, Meta(ge=0, le=1000)] = 100  # last lines in `LogView.tail`


class LogView(View, frozen=True, kw_only=True):
    """A log: of an attempt that runs, or has ended."""

    key: str
    name: str  # of the step
    fence: str  # of the attempt; "0": none has begun, or nothing is known of it
    state: str  # that of the step, or the result of the attempt: "running", "lost"
    file: str = ""  # name of the file
    size: int = 0  # bytes, as far as known
    lines: int = 0  # as far as counted
    whole: bool = False  # all of it is here
    ended: bool = False  # no more comes
    message: str = ""  # why it waits, why no more comes
    attempts: tuple[LogAttempt, ...] = ()  # all that the controller knows, the newest last
    newer: str = ""  # address of the log of a newer attempt
    tail: tuple[str, ...] = ()  # the last lines, without colors


class RawQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fence: Count = 0
    download: bool = False


class RowsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first of ``from``, ``to`` and ``line`` that is given counts; without one, the end."""

    fence: Count = 0
    start: Offset | None = msgspec.field(default=None, name="from")
    to: Offset | None = None
    line: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    length: Annotated[int, Meta(ge=1, le=bounds.LOG_RANGE)] = ROWS


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fence: Count = 0
    start: Offset = msgspec.field(default=0, name="from")


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    q: str = ""
    fence: Count = 0
    start: Offset = msgspec.field(default=0, name="from")
    regex: bool = False
    case: bool = False


# -- the page ------------------------------------------------------------------------------


async def make(web: Web, values: Mapping[str, str], query: LogQuery) -> LogView:
    """The page of a log.  NotFound if neither the controller nor the store knows the step."""
    key = _key(values)
    attempts: list[LogAttempt] = []
    with contextlib.suppress(MachineFault):
        attempts = [attempt for attempt, _ in await web.logs.attempts(key)]
    try:
        async with web.logs.open(key, query.fence) as copy:
            return await _view(copy, tuple(attempts), query.tail)
    except NotFound:
        if query.fence or attempts:
            raise
        return await _waiting(web, key)


async def _view(copy: LogCopy, attempts: tuple[LogAttempt, ...], lines: int) -> LogView:
    named = copy.named
    known = {int(one.fence): one for one in attempts}
    newest = max(known, default=0)
    own = known.get(named.fence) or LogAttempt(str(named.fence), named.state)
    tail: list[str] = []
    if lines:
        with contextlib.suppress(MachineFault):
            rows = await copy.tail(ROWS)
            tail = printable(rows.data.decode(errors="replace")).split("\n")
    if tail and not tail[-1]:
        tail.pop()
    return LogView(
        key=named.key,
        name=named.name,
        fence=str(named.fence),
        state=own.state,
        file=named.log,
        size=copy.size,
        lines=copy.file.lines,
        whole=copy.whole,
        ended=copy.ended,
        message=copy.problem or own.message,
        attempts=attempts,
        newer=f"/steps/{named.key}/log?fence={newest}" if 0 < named.fence < newest else "",
        tail=tuple(tail[-lines:] if lines else ()),
    )


async def _waiting(web: Web, key: str) -> LogView:
    """The page of a step whose first attempt has not begun."""
    lines = (await web.farm.query("why", key)).lines
    return LogView(key=key, name=key[:12], fence="0", state="waiting", message="\n".join(lines))


def _key(values: Mapping[str, str]) -> str:
    if not _KEY.fullmatch(values["key"]):
        raise NotFound(f"{values['key'][:100]}: this is not the key of a step")
    return values["key"]


# -- what the page reads -------------------------------------------------------------------


class _Endpoint(Generic[Q]):
    """An ASGI application that answers with a part of a log, which stays open meanwhile."""

    def __init__(
        self, query: type[Q], answer: Callable[[Request, LogCopy, Q], Awaitable[Response]]
    ) -> None:
        self._query = query
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            query = msgspec.convert(dict(request.query_params), self._query, strict=False)
        except msgspec.ValidationError as error:
            raise BadAddress(str(error)) from None
        web: Web = request.app.state.web
        fence: int = getattr(query, "fence", 0)
        async with web.logs.open(_key(request.path_params), fence) as copy:
            response = await self._answer(request, copy, query)
            await response(scope, receive, send)


async def _raw(request: Request, copy: LogCopy, query: RawQuery) -> Response:
    """All bytes, or a range of them.  An attempt that runs has those that there are now."""
    kind = "attachment" if query.download else "inline"
    name = copy.named.log or f"{copy.named.key[:12]}.log"
    headers = {
        "Content-Disposition": f"{kind}; filename*=UTF-8''{_quoted(name)}",
        "Accept-Ranges": "bytes",
    }
    with contextlib.suppress(MachineFault):
        await copy.refresh()
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or asked[0] == "bytes=-":
        if copy.whole:
            headers["Content-Length"] = str(copy.total)
        body = _bytes(copy, 0, None)
        return StreamingResponse(body, 200, headers, "text/plain; charset=utf-8")
    await copy.wait_for(copy.size if not asked[1] else int(asked[2] or copy.size - 1) + 1)
    size = copy.file.size
    begin = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
    total = str(copy.total) if copy.whole else "*"
    if begin >= end:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{total}"})
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
    headers["Content-Length"] = str(end - begin)
    body = _bytes(copy, begin, end)
    return StreamingResponse(body, 206, headers, "text/plain; charset=utf-8")


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


async def _bytes(copy: LogCopy, at: int, end: int | None) -> AsyncIterator[bytes]:
    """The bytes from ``at`` on; without ``end``, up to the last one that there is now."""
    while end is None or at < end:
        length = PIECE if end is None else min(PIECE, end - at)
        data = await asyncio.to_thread(copy.file.read, at, length)
        if data:
            yield data
            at += len(data)
        elif copy.ended or copy.current:
            return
        else:
            await copy.wait_for(at + 1)


async def _rows(_: Request, copy: LogCopy, query: RowsQuery) -> Response:
    """Whole rows: lines, or parts of long ones.  Headers tell where they stand."""
    if query.start is not None:
        await copy.wait_for(query.start + query.length)
        rows = await asyncio.to_thread(copy.file.rows_from, query.start, query.length)
    elif query.to is not None:
        await copy.wait_for(query.to)
        rows = await asyncio.to_thread(copy.file.rows_to, query.to, query.length)
    elif query.line is not None:
        at = await _offset_of(copy, query.line)
        await copy.wait_for(at + query.length)
        rows = await asyncio.to_thread(copy.file.rows_from, at, query.length)
    else:
        rows = await copy.tail(query.length)
    return _rows_response(copy, rows)


def _rows_response(copy: LogCopy, rows: Rows) -> Response:
    headers = {
        "Log-From": str(rows.offset),
        "Log-Line": str(rows.line),  # number of the line of the first row; 0: not known yet
        "Log-Begins": str(int(rows.begins)),  # whether it begins that line
        "Log-Size": str(copy.size),
        "Log-Ended": str(int(copy.ended)),
    }
    return Response(rows.data, 200, headers, "text/plain; charset=utf-8")


async def _offset_of(copy: LogCopy, line: int) -> int:
    while (at := await asyncio.to_thread(copy.file.offset_of, line)) is None:
        if copy.current or copy.ended:
            raise NotFound(f"this log has only {copy.file.lines:,} lines")
        await copy.wait_for(copy.file.size + bounds.LOG_RANGE)
    return at


async def _stream(_: Request, copy: LogCopy, query: StreamQuery) -> Response:
    """The bytes from ``from`` on, as they come.

    It ends when the log does, when nothing comes for a while, and when the viewer is far behind.
    """
    headers = {"X-Accel-Buffering": "no", "Content-Encoding": "identity"}
    body = _growing(copy, query.start)
    return StreamingResponse(body, 200, headers, "text/plain; charset=utf-8")


async def _growing(copy: LogCopy, at: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    silent = loop.time() + SILENCE
    while copy.size - at <= LAG:
        if data := copy.file.read(at, PIECE):
            yield data
            at += len(data)
            silent = loop.time() + SILENCE
            if len(data) < PIECE:
                await asyncio.sleep(FLUSH_EVERY)
        elif copy.ended or loop.time() >= silent:
            return
        else:
            await copy.changed(silent - loop.time())


async def _search(request: Request, copy: LogCopy, query: SearchQuery) -> Response:
    """Lines with a text, or a match of a regular expression of RE2."""
    try:
        find = finder(query.q, regex=query.regex, case=query.case)
    except PatternError as error:
        raise BadAddress(str(error)) from None
    await copy.wait_for(copy.size)
    web: Web = request.app.state.web
    async with web.logs.searching():
        found = await asyncio.to_thread(
            copy.file.search, find, query.start, MATCHES, SEARCH_SECONDS
        )
    return Response(msgspec.json.encode(found), media_type="application/json")


def _route(path: str, endpoint: _Endpoint[Any]) -> BaseRoute:
    return Route(f"/steps/{{key}}/log/{path}", endpoint, methods=["GET"])


routes: list[Page | BaseRoute] = [
    Page(
        path="/steps/{key}/log",
        template="log.html",
        summary="The log of an attempt at a step",
        view=LogView,
        make=make,
        query=LogQuery,
        live=False,
    ),
    _route("raw", _Endpoint(RawQuery, _raw)),
    _route("rows", _Endpoint(RowsQuery, _rows)),
    _route("stream", _Endpoint(StreamQuery, _stream)),
    _route("search", _Endpoint(SearchQuery, _search)),
]
