"""The application without a network: forms of a page, errors, headers, hostile texts."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from starlette.applications import Starlette
from wire_kit import key_of

from fabric.errors import MachineFault
from fabric.jobs import Artifact, Blob, Content, Manifest
from fabric.trove.artifacts.store import Store
from fabric.web.app import create
from fabric.web.asks import Heard
from fabric.web.attempts import Attempts
from fabric.web.graphs import Graphs
from fabric.web.live import _Ticker
from fabric.web.log_copies import LogCopies
from fabric.web.mirrors import Mirrors
from fabric.web.page import Page, View, Web
from fabric.web.routes import ROUTES
from fabric.web.security import is_loopback
from fabric.web.store import StoreReader
from fabric.wire.messages import (
    AttemptInfo,
    GraphStep,
    RequestInfo,
    StepState,
    Update,
    WorkerInfo,
)

KEY = key_of("zlib")
FENCE = 2**53 + 1
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


class Broker:
    """Answers each kind of question with what the test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.error = ""

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:  # noqa: ARG002
        if self.error:
            raise MachineFault(self.error)
        return Heard("", **self.answers.get(what, {}))


def full(text: str) -> Broker:
    """A broker whose farm has this text in all places."""
    step = StepState(
        KEY, "failed", name=text, kind="chunk", worker=text, phase=text[:60], message=text,
        failed_phase=text[:60], failed_command=text, fence=FENCE,
    )  # fmt: skip
    running = msgspec.structs.replace(step, state="running")
    info = RequestInfo(
        "r1", text, text, "building", 10.0, total=3, running=1, message=text, failed=1
    )
    attempt = AttemptInfo(
        KEY, FENCE, text, "chunk", text, 9.0, 5.0, 1, "failed", text, ((text[:60], 0.0),)
    )
    worker = WorkerInfo(text, text, 2, 10.0, 1.0, (running,), "refusing", text, features=(text,))
    update = Update(
        "r1", 3, "failed", (step,), title=text, goals=(KEY,), warning=text, message=text
    )
    return Broker(
        workers={"workers": (worker,), "warning": text},
        requests={"requests": (info,), "warning": text},
        update={"update": update},
        graph={
            "graph": (GraphStep(KEY, text, "chunk", (1,)), GraphStep(key_of("b"), text, "chunk"))
        },
        attempts={"attempts": (attempt,)},
        why={"lines": (text,)},
    )


def site(broker: Broker, tmp_path: Path, **options: Any) -> Starlette:
    reader = StoreReader(lambda: Store(str(tmp_path / "store"), tmp_path / "scratch"))
    logs = LogCopies(cast("Any", broker), reader, tmp_path)  # no page here shows one
    return create(
        Web(broker, Mirrors(broker), Graphs(broker), Attempts(broker), reader, logs, HOSTILE),
        **{"loopback": False, "token": "right", **options},
    )


class Markup(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


def ask(
    app: Starlette, address: str, method: str = "GET", server: str = "127.0.0.1", **headers: str
) -> Reply:
    """The application's answer, without a server."""
    path, _, query = address.partition("?")
    fields = {"host": server, "authorization": "Bearer right", **headers}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "server": ("127.0.0.1", 7420), "client": ("127.0.0.1", 1),
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Reply(sent[0]["status"], head, body.decode())


ADDRESSES = (
    "/", "/builds", "/builds/r1", f"/steps/{KEY}", f"/steps/{KEY}?build=r1", "/workers/w1",
    "/systems", "/systems/small",
)  # fmt: skip


def store_system(tmp_path: Path, text: str) -> None:
    """A store with a system whose texts are this."""
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    facts = {"description": text, "repo": text, "ref": text, "morph": text, "sha1": text}
    chunk = Manifest(
        key=KEY, kind="chunk", name="zlib", arch=text, artifacts=(), metadata=facts,
        inputs={text: text}, remarks=(text,), builder=text, built=10.0,
    )  # fmt: skip
    rootfs = Artifact("small-rootfs", Blob.of(b"x"), (Content(KEY, "zlib-bins"),))
    system = Manifest(
        key=key_of("s"), kind="system", name="small", arch=text, artifacts=(rootfs,),
        metadata=facts, builder=text, built=10.0,
    )  # fmt: skip
    for one in (chunk, system):
        store.put(one, {})


@pytest.mark.parametrize("address", ADDRESSES)
def test_hostile_texts_are_only_text(address: str, tmp_path: Path) -> None:
    store_system(tmp_path, HOSTILE)
    app = site(full(HOSTILE), tmp_path)
    reply = ask(app, address)
    assert reply.status == 200
    markup = Markup()
    markup.feed(reply.text)
    assert "img" not in markup.tags
    assert markup.tags.count("script") == 1, "only the page's own"
    assert not [name for name in markup.attributes if name.startswith("on")]
    assert any(HOSTILE in text for text in markup.texts), "it is shown"
    data = ask(app, address, accept="application/json")
    assert data.headers["content-type"] == "application/json"
    assert "alert(1)" in data.text


def test_form_follows_accept_and_format(tmp_path: Path) -> None:
    app = site(full("x"), tmp_path)

    def kind(address: str, accept: str = "") -> str:
        return ask(app, address, accept=accept).headers["content-type"].partition(";")[0]

    assert kind("/") == "text/html"
    assert kind("/", "application/json") == "application/json"
    assert kind("/", "text/html,application/xhtml+xml,*/*;q=0.8") == "text/html"
    assert kind("/", "application/json;q=0.5, text/html") == "text/html"
    assert kind("/?format=json", "text/html") == "application/json"
    assert kind("/?format=html", "application/json") == "text/html"
    assert ask(app, "/").headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/nowhere", 404, "No page has this address."),
        ("/builds/r2", 404, "r2: no such build"),
        ("/steps/x", 404, "x: no key of a step"),
        ("/?page=0", 400, "Expected `int` &gt;= 1 - at `$.page`"),
        ("/?pgae=1", 400, "contains unknown field `pgae`"),
        ("/builds?state=odd", 400, "Invalid enum value"),
        ("/?format=xml", 400, "format is html or json"),
    ],
)
def test_errors_have_words(address: str, status: int, said: str, tmp_path: Path) -> None:
    app = site(full("x"), tmp_path)
    reply = ask(app, address)
    assert reply.status == status
    assert said in reply.text
    if "format=" not in address:
        data = ask(app, address, accept="application/json")
        assert data.status == status
        assert html.unescape(said) in msgspec.json.decode(data.text)["error"]


def test_only_reading_is_allowed(tmp_path: Path) -> None:
    app = site(full("x"), tmp_path)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        reply = ask(app, "/builds/r1", method, accept="application/json")
        assert reply.status == 405
        assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_silent_broker_is_a_page_that_comes_back(tmp_path: Path) -> None:
    broker = full("x")
    broker.error = "tcp://farm:7411 does not answer"
    reply = ask(site(broker, tmp_path), "/builds?user=x")
    assert reply.status == 503
    assert "tcp://farm:7411 does not answer" in reply.text
    assert 'data-live="/live/builds?user=x" data-away' in reply.text


def test_fault_is_logged_and_not_shown(tmp_path: Path) -> None:
    class Empty(View, frozen=True):
        pass

    async def make(*_: object) -> Empty:
        raise ValueError("secret")

    page = Page(path="/fault", template="farm.html", summary="", view=Empty, make=make)
    logged: list[str] = []
    app = site(full("x"), tmp_path, routes=[page], log=logged.append)
    with pytest.raises(ValueError, match="secret"):  # as the server sees it, too
        ask(app, "/fault")
    assert "secret" in logged[0]


def test_every_answer_has_security_headers(tmp_path: Path) -> None:
    app = site(full("x"), tmp_path)
    for address in ("/", "/nowhere", "/static/style.css", "/api/openapi.json", "/health"):
        headers = ask(app, address).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert headers["x-content-type-options"] == "nosniff"
    assert "immutable" in ask(app, "/static/style.css?v=1").headers["cache-control"]
    assert ask(app, "/static/log-rows.js").headers["cache-control"] == "no-cache"
    assert ask(app, "/").headers["cache-control"] == "no-store"


def test_templates_have_no_inline_style_or_script() -> None:
    folder = Path(__file__).parents[2] / "fabric/web/templates"
    for file in folder.glob("*.html"):
        text = file.read_text()
        assert not re.search(r"\sstyle\s*=|\son\w+\s*=|<style|<script(?![^>]*\ssrc=)", text), file
        assert "| safe" not in text
        assert "|safe" not in text


# -- who may read --------------------------------------------------------------------------


def test_another_name_of_this_host_is_rejected(tmp_path: Path) -> None:
    app = site(full("x"), tmp_path, loopback=True)
    assert ask(app, "/", server="localhost:7420").status == 200
    assert ask(app, "/", server="evil.example:7420").status == 421
    assert "Host" in ask(app, "/", server="evil.example").text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1:80", True), ("127.1.2.3", True), ("localhost", True), ("LOCALHOST:1", True),
        ("[::1]:80", True), ("[::1]", True), ("", False), ("10.0.0.1:80", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example:80", False), ("x:y:z", False),
    ],
)  # fmt: skip
def test_loopback_hosts(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_private_page_needs_its_token(tmp_path: Path) -> None:
    app = site(full("x"), tmp_path)
    assert ask(app, "/builds").status == 200, "a proxy signs all requests"
    assert "set-cookie" not in ask(app, "/builds?token=right").headers
    stranger = partial(ask, authorization="Basic right")
    for address in ("/", "/static/style.css", "/live/", "/?token=wrong", "/?token="):
        assert stranger(app, address).status == 403
    opened = stranger(app, "/builds?user=x&token=right")
    assert (opened.status, opened.headers["location"]) == (303, "/builds?user=x")
    cookie = opened.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=lax" in cookie.lower()
    value = cookie.partition(";")[0]
    assert value == "fabric-web-7420=right"
    assert stranger(app, "/builds", cookie=value).status == 200
    again = stranger(app, "/builds?token=right", cookie=value)
    assert (again.status, again.headers["location"]) == (303, "/builds"), "opened once more"
    assert stranger(app, "/builds", cookie="fabric-web-7420=wrong").status == 403
    assert stranger(app, "/builds", cookie="a=b; =; \x01").status == 403
    away = stranger(app, "//evil.example/?token=right")
    assert away.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("address", ["/", "/builds/r1", f"/steps/{KEY}?build=r1", "/workers/x"])
def test_programs_in_javascript_can_read_all_numbers(tmp_path: Path, address: str) -> None:
    text = ask(site(full("x"), tmp_path), address, accept="application/json").text
    assert f'"fence":"{FENCE}"' in text
    assert json.loads(text, parse_int=lambda digits: assert_small(int(digits)))


def assert_small(number: int) -> int:
    assert abs(number) <= 2**53
    return number


# -- long lists ----------------------------------------------------------------------------


def test_long_lists_are_quick(tmp_path: Path) -> None:
    """100,000 steps, 5,000 builds and 2,000 workers: a page shows a part, with counts."""
    running = StepState(KEY, "running", name="zlib", phase="build")
    workers = tuple(
        WorkerInfo(f"w{number}", "x86_64", 8, 10.0, 1.0, (running,) * 8, "busy")
        for number in range(2_000)
    )
    infos = tuple(
        RequestInfo(f"r{number}", "base for bob", f"user{number}", "building", 10.0, total=20)
        for number in range(5_000)
    )
    steps = tuple(
        StepState(key_of(str(number)), "waiting", name=f"step{number}") for number in range(100_000)
    )
    update = Update("r1", 3, "building", steps, title="base for bob", goals=(steps[0].key,))
    broker = Broker(
        workers={"workers": workers}, requests={"requests": infos}, update={"update": update}
    )
    app = site(broker, tmp_path)
    for address, said in (
        ("/", "1 to 100 of 2,000"), ("/builds", "1 to 100 of 5,000"),
        ("/builds/r1", "1 to 100 of 100,000"),
    ):  # fmt: skip
        began = time.process_time()
        reply = ask(app, address)
        assert time.process_time() - began < 1.0
        assert said in reply.text
        assert len(reply.text) < 400_000


# -- live ----------------------------------------------------------------------------------


def test_ticker_sends_what_changes_to_all_viewers() -> None:
    shown = {"a": "1", "b": "1"}

    async def render() -> dict[str, str]:
        return dict(shown)

    async def test() -> None:
        from fabric.web.live import _Viewer

        ticker = _Ticker(render, print)
        one = _Viewer()
        ticker.add(one)
        first = b"".join(await one.take())
        assert first.count(b"event: fragment") == 2
        shown["b"] = "2"
        second = b"".join(await one.take())
        assert b'"b","html":"2"' in second
        assert b'"a"' not in second
        late = _Viewer()
        ticker.add(late)
        assert b"".join(await late.take()).count(b"event: fragment") == 2
        ticker.stop()

    asyncio.run(test())


def test_all_pages_are_described() -> None:
    paths = [each.path for each in ROUTES if isinstance(each, Page)]
    assert len(set(paths)) == len(paths)
