"""A web page for tests: the real fabric-web beside a real broker, and a browser."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from farm_kit import HOST, Farm, Peer
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)
from waiting import until
from wire_kit import FakeWorker

from fabric import bounds
from fabric.building import agent as worker_side
from fabric.trove.sources.build_refs import new_request
from fabric.wire import sockets
from fabric.wire.keys import REFRESH_EVERY, Role
from fabric.wire.messages import PROTOCOL, BuildOrder, Published, Update
from fabric.wire.sockets import Curve

CHROMIUM = "/usr/bin/chromium-headless-shell"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
#: Milliseconds that the browser waits for something to appear.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)
#: The token of pages of a farm, and the header with it.
TOKEN = "a-token-for-tests"
SIGNED = {"Authorization": f"Bearer {TOKEN}"}


#: The program of the broker; its resolver builds the steps in the text of an order.
BROKER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "kit")!r})
from pathlib import Path
from fabric import broker, config
from fabric.host.event_log import EventLog
from fabric.scheduling.model import Limits
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.build_refs import new_request
from fabric.wire import sockets
from fabric.wire.keys import REFRESH_EVERY, Role
settings = config.load(config.BrokerSettings, Path(sys.argv[1]))
resolver = '''
import sys, msgspec
sys.path.insert(0, sys.argv[1])
from wire_kit import steps_of
from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder
order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BuildOrder)
steps = steps_of(order.system)
graph = BuildGraph(PROTOCOL, order.request, order.title, steps, (steps[0].key,), order.keep_going,
                   detach=True, requester=order.requester)
sys.stdout.buffer.write(msgspec.msgpack.encode(graph))
'''
broker.serve(broker.assemble(
    sockets.over_tcp(settings.listen, settings.port),
    settings.state_dir,
    lambda: Store(settings.store_url, settings.state_dir / "scratch"),
    Limits(lease=3.0),
    settings.keys_dir,
    (sys.executable, "-c", resolver, sys.path[0]),
    EventLog("fabric-broker"),
))
"""


class Response(NamedTuple):
    """What fabric-web answers."""

    status: int
    headers: dict[str, str]  # their names in lower case
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Web:
    """fabric-web as a process; ``settings`` are lines of its settings file."""

    def __init__(self, directory: Path, settings: dict[str, object]) -> None:
        self.directory = directory
        self.config = directory / "web.toml"
        values = {"listen": HOST, "port": 0, "cache": str(directory / "web-cache"), **settings}
        if "controller" in settings:
            values["token"] = str(directory / "web.token")
            (directory / "web.token").write_text(f"{TOKEN}\n")
        self.config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
        self.start()

    def start(self) -> None:
        with (self.directory / "web.err").open("ab") as errors:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "fabric.web.program", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        assert self.child.stdout is not None
        #: its address as it printed it, with a token if it needs one
        self.printed = self.child.stdout.readline().strip()
        assert self.printed, self.said
        self.url = self.printed.partition("/?")[0].rstrip("/")
        try:
            until(self._answers, 60.0, "for fabric-web")
        except BaseException:
            self.kill()
            raise

    @property
    def said(self) -> str:
        """Its standard error."""
        return (self.directory / "web.err").read_text()

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()

    def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        """The answer to a request; ``headers`` with ``_`` for ``-``."""
        headers.setdefault("authorization", SIGNED["Authorization"])
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(
                method, path, headers={name.replace("_", "-"): v for name, v in headers.items()}
            )
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, found, answer.read().decode(errors="replace"))
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """A page as JSON."""
        answer = self.get(path, accept="application/json")
        assert answer.status == 200, answer
        return answer.json

    def _answers(self) -> bool:
        try:
            return self.url.startswith("https") or self.get("/health").status in (200, 403)
        except OSError:
            assert self.child.poll() is None, self.said
            return False


class HeldWorker(FakeWorker):
    """A worker whose steps run until they are released, and print what the test wants."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._held: dict[str, worker_side.Start] = {}
        self._wanted: list[tuple[str, bytes | None]] = []
        self._printed: dict[str, bytes] = {}
        self._lock = threading.Lock()
        super().__init__(*args, **options)

    def holds(self, name: str) -> bool:
        """Whether a step runs here."""
        return name in self._held

    def prints(self, name: str, data: bytes) -> None:
        """Let a step print something."""
        until(lambda: name in self._held, what=f"for {name}")
        with self._lock:
            self._wanted.append((name, data))

    def release(self, *names: str) -> None:
        """Let steps end as `build` decides."""
        for name in names:
            until(lambda name=name: name in self._held, what=f"for {name}")  # type: ignore[misc]
            with self._lock:
                self._wanted.append((name, None))

    def _start(self, action: worker_side.Start) -> None:
        self._held[self.name_of(action)] = action
        self._printed.pop(self.name_of(action), None)

    @staticmethod
    def name_of(action: worker_side.Start) -> str:
        return msgspec.msgpack.decode(action.job, type=str)

    def _turn(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, []
        for name, data in wanted:
            if data is None:
                super()._start(self._held.pop(name))
                continue
            action, before = self._held[name], self._printed.get(name, b"")
            self._logs[action.key, action.fence] = self._printed[name] = before + data
            for at in range(0, len(data), bounds.LOG_PIECE):
                part = data[at : at + bounds.LOG_PIECE]
                piece = Published(action.key, action.fence, len(before) + at, part)
                sockets.send(self._stream, piece.frame())  # a lost one is requested again
        super()._turn()


class Controller(Farm):
    """The real broker with a scripted resolver: the system of an order is a text of steps."""

    def start(self) -> None:
        with (self.directory / "broker.err").open("ab") as errors:
            self.child = subprocess.Popen(
                [sys.executable, "-c", BROKER, str(self.config)],
                stdin=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip


class Site:
    """A farm with its web page."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._curves: dict[str, Curve] = {}
        self.workers: list[HeldWorker] = []
        #: what a test wants to remember by name
        self.names: dict[str, str] = {}
        self.farm = Controller(directory, stack)
        self.farm.key("viewer", "web")
        self.web = Web(
            directory,
            {
                "controller": HOST,
                "keys": str(directory / "web"),
                "artifacts": str(directory / "store"),
            },
        )
        stack.callback(self.web.kill)

    @property
    def url(self) -> str:
        return self.web.url

    def worker(self, name: str, *args: Any, **options: Any) -> HeldWorker:
        """A worker that the page knows already."""
        curve = self._key("worker", name)
        worker = HeldWorker(
            self.farm.directory, name, *args, at=self.farm.at, curve=curve, **options
        )
        self._stack.callback(worker.stop)
        self.workers.append(worker)
        until(lambda: self.web.get(f"/workers/{name}").status == 200, 60.0, f"for {name}")
        return worker

    def _key(self, role: Role, name: str) -> Curve:
        """A new key, admitted.  The broker refuses one that comes just after another new one."""
        curve = self.farm.key(role, name)
        time.sleep(2 * REFRESH_EVERY)
        return curve

    def build(self, text: str, user: str = "alice", **options: Any) -> str:
        """Submit a detached build of steps, as in `wire_kit.steps_of`; returns its id."""
        if user not in self._curves:
            self._curves[user] = self._key("initiator", user)
        options = {"title": f"small for {user}", "keep_going": True, **options}
        order = BuildOrder(
            PROTOCOL, new_request(), ref=f"refs/builds/{user}/x", commit="0" * 40, system=text,
            detach=True, **options,
        )  # fmt: skip

        def accepted() -> bool:
            """ZeroMQ does not connect again after a rejection, and a key is admitted soon."""
            peer = Peer(self.farm, self._curves[user])
            try:
                peer.say(order)
                return bool(peer.jobs.poll(1000)) and isinstance(peer.hear(), Update)
            finally:
                peer.close()

        until(accepted, what=f"for the build {order.title}")
        return order.request

    def state(self, build: str) -> dict[str, str]:
        """The states of the steps of a build, by name, as JSON has them."""
        return {step["name"]: step["state"] for step in self.web.json(f"/builds/{build}")["steps"]}


class Pages:
    """Opens pages in a browser, and collects what goes wrong there."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        #: errors in the console, and exceptions
        self.errors: list[str] = []
        #: parts of errors that a test expects: "net::ERR_CONNECTION_REFUSED"
        self.expected: list[str] = []

    def open(self, url: str, width: int = 1280, height: int = 900, **options: Any) -> Page:
        """A page in a context of its own."""
        options = {"viewport": {"width": width, "height": height}, **options}
        context = self._browser.new_context(extra_http_headers=SIGNED, **options)
        context.set_default_timeout(PATIENCE)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    @property
    def unexpected(self) -> list[str]:
        return [one for one in self.errors if not any(part in one for part in self.expected)]


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
