"""Assembles the application: pages as HTML, JSON and live, errors, static files."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from fabric.errors import FabricError, MachineFault
from fabric.web.asks import BadAddress, NotFound
from fabric.web.live import LivePages, fault
from fabric.web.openapi import description
from fabric.web.page import Page, View, Web
from fabric.web.routes import ROUTES
from fabric.web.security import Guard
from fabric.web.templating import Templates

#: Titles of error pages.
_TITLES = {
    400: "This address has a mistake",
    404: "There is no such page",
    405: "This address only shows something",
    502: "The controller has no answer",
    503: "The controller is away",
}


class Health(View, frozen=True, kw_only=True):
    """The state of this program."""

    broker: str  # why the broker is silent; "" if it answers
    viewers: int  # live pages that are open


class Problem(msgspec.Struct, frozen=True):
    """Why a request has no answer."""

    error: str


def create(
    web: Web,
    routes: Sequence[Page | BaseRoute] = ROUTES,
    *,
    loopback: bool,
    token: str,
    log: Callable[[str], None] = print,
) -> Starlette:
    """The application; ``loopback`` and ``token`` as for `Guard`."""
    templates = Templates(web)
    live = LivePages(log)
    site = _Site(web, templates, live, log)
    described = [each for each in routes if isinstance(each, Page)]

    async def health(_: Request) -> Response:
        return _json(Health(broker=web.farm.error, viewers=live.viewers))

    openapi = msgspec.json.encode(description(described, Health, Problem))

    async def api(_: Request) -> Response:
        return Response(openapi, media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        live.close()

    all_routes: list[BaseRoute] = [
        Route("/health", health),
        Route("/api/openapi.json", api),
        Mount("/static", _Static(packages=[("fabric.web", "static")])),
    ]
    for each in routes:
        if isinstance(each, Page):
            all_routes.append(Route(each.path, site.show(each)))
            if each.live:
                all_routes.append(Route(f"/live{each.path}", site.follow(each)))
        else:
            all_routes.append(each)
    app = Starlette(
        routes=all_routes,
        middleware=[Middleware(Guard, loopback=loopback, token=token)],
        exception_handlers={
            HTTPException: site.http_error,
            FabricError: site.fabric_error,
            Exception: site.fault,
        },
        lifespan=lifespan,
    )
    app.state.web = web
    app.state.templates = templates
    return app


class _Site:
    """Answers requests for pages."""

    def __init__(
        self, web: Web, templates: Templates, live: LivePages, log: Callable[[str], None]
    ) -> None:
        self._web = web
        self._templates = templates
        self._live = live
        self._log = log

    def show(self, page: Page) -> Callable[[Request], object]:
        """The handler of a page's address."""

        async def show(request: Request) -> Response:
            query = _query(page, request)
            view = await page.make(self._web, request.path_params, query)
            if _wants_json(request):
                return _json(view)
            html = self._templates.page(
                page.template,
                view=view,
                query=msgspec.to_builtins(query),
                path=request.url.path,
                follow=_live_address(request) if page.live else "",
                away="",
            )
            return HTMLResponse(html, headers={"Vary": "Accept"})

        return show

    def follow(self, page: Page) -> Callable[[Request], object]:
        """The handler of a page's server-sent events."""

        async def follow(request: Request) -> ASGIApp:
            query = _query(page, request)
            path = request.url.path.removeprefix("/live")
            values = request.path_params

            async def render() -> dict[str, str]:
                view = await page.make(self._web, values, query)
                builtins = msgspec.to_builtins(query)
                return self._templates.fragments(page, view, query=builtins, path=path)

            address = f"{path}?{msgspec.json.encode(query).decode()}"

            async def answer(scope: Scope, receive: Receive, send: Send) -> None:
                with self._live.watch(address, render) as events:
                    response = StreamingResponse(events, media_type="text/event-stream")
                    response.headers["X-Accel-Buffering"] = "no"  # nginx passes events on at once
                    await response(scope, receive, send)

            return answer

        return follow

    # -- errors --------------------------------------------------------------------------------

    async def http_error(self, request: Request, error: Exception) -> Response:
        """An error of the routing: 404, 405."""
        assert isinstance(error, HTTPException)
        text = {
            404: "No page has this address.",
            405: "Pages are read, never changed: use GET.",
        }.get(error.status_code, error.detail)
        return self._error(request, error.status_code, text, error.headers)

    async def fabric_error(self, request: Request, error: Exception) -> Response:
        """An error that its text explains."""
        status = 502
        for kind, number in ((NotFound, 404), (BadAddress, 400), (MachineFault, 503)):
            if isinstance(error, kind):
                status = number
        return self._error(request, status, str(error))

    async def fault(self, request: Request, error: Exception) -> Response:
        """A fault of this program."""
        self._log("".join(traceback.format_exception(error)))
        return self._error(request, 500, fault(error))

    def _error(self, request: Request, status: int, text: str, headers: object = None) -> Response:
        more = dict(headers) if isinstance(headers, dict) else {}
        more |= {"Vary": "Accept"}
        if _wants_json(request):
            return Response(
                msgspec.json.encode(Problem(text)), status, more, media_type="application/json"
            )
        html = self._templates.page(
            "error.html",
            title=_TITLES.get(status, "This page has a fault"),
            text=text,
            path="",
            follow=_live_address(request) if status == 503 else "",
            away=text if status == 503 else "",
        )
        return HTMLResponse(html, status, more)


class _Static(StaticFiles):
    """Static files.  Browsers keep one whose address changes with its content.

    The parts of scripts have no such addresses, and browsers ask whether they have changed.
    """

    async def get_response(self, path: str, scope: object) -> Response:
        response = await super().get_response(path, scope)  # type: ignore[arg-type]
        named = b"v=" in scope["query_string"]  # type: ignore[index]
        keep = "public, max-age=31536000, immutable" if named else "no-cache"
        response.headers["Cache-Control"] = keep
        return response


def _query(page: Page, request: Request) -> msgspec.Struct:
    """The query of an address.  BadAddress names the mistake."""
    given = {name: value for name, value in request.query_params.items() if name != "format"}
    if request.query_params.get("format", "html") not in ("html", "json"):
        raise BadAddress("format is html or json")
    try:
        return msgspec.convert(given, page.query, strict=False)
    except msgspec.ValidationError as error:
        raise BadAddress(str(error)) from None


def _wants_json(request: Request) -> bool:
    asked = request.query_params.get("format")
    if asked in ("html", "json"):
        return asked == "json"
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in request.headers.get("accept", "").split(","):
        kind, _, parameters = part.strip().partition(";")
        weight = 1.0
        with contextlib.suppress(ValueError):
            name, _, value = parameters.strip().partition("=")
            weight = float(value) if name == "q" else 1.0
        if kind.strip() in weights:
            weights[kind.strip()] = weight
    return weights["application/json"] > weights["text/html"]


def _live_address(request: Request) -> str:
    query = request.url.query
    return f"/live{request.url.path}" + (f"?{query}" if query else "")


def _json(view: msgspec.Struct) -> Response:
    return Response(
        msgspec.json.encode(view), media_type="application/json", headers={"Vary": "Accept"}
    )
