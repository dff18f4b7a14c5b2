"""Adds security headers, and rejects requests for other hosts or without the token."""

from __future__ import annotations

import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: All that a page may load comes from this server; what a build prints cannot run.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: The query parameter with the token, which moves to a cookie.
TOKEN = "token"


class Guard:
    """ASGI middleware around the whole application.

    With ``loopback``, the ``Host`` of a request must be a loopback address: other sites cannot read
    pages by a name of theirs that resolves to it.  A request needs ``token``: a proxy sends it as
    ``Authorization: Bearer``; a browser has it in the query, at first, and then in a cookie.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool, token: str) -> None:
        self._app = app
        self._loopback = loopback
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._rejection(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _rejection(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._loopback and not is_loopback(host):
            return PlainTextResponse(
                f"This server listens on a loopback address, and does not answer for {host!r}."
                " Open it by 127.0.0.1 or localhost; a proxy sends one of them as Host.\n",
                421,
            )
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return None if self._is_token(bearer) else self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        name = f"fabric-web-{(scope.get('server') or ('', 0))[1]}"  # cookies know no ports
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            cookies.clear()
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == TOKEN]
        known = name in cookies and self._is_token(cookies[name].value)
        if known and not given:
            return None
        if known or any(map(self._is_token, given)):
            rest = urlencode([(key, value) for key, value in query if key != TOKEN])
            path = "/" + scope["path"].lstrip("/")  # "//host" would be another site
            response = RedirectResponse(path + ("?" + rest if rest else ""), 303)
            secure = scope["scheme"] == "https"
            # not strict: a file, or another site, may have led to this address
            response.set_cookie(name, self._token, httponly=True, samesite="lax", secure=secure)
            return response
        return PlainTextResponse(
            "This page is private. Open the address that fabric-web, or `fabric-initiator build"
            " --web`, has printed: it holds a token. If a file of a token is set, a proxy sends"
            " what is in it as `Authorization: Bearer`.\n",
            403,
        )

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())


def is_loopback(host: str) -> bool:
    """Whether the ``Host`` of a request, with or without a port, is this machine by loopback."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]")
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
