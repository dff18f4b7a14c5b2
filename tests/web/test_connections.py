"""Clients that are slow, silent or many, and what is kept for those that come back."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, cast

import pytest
import uvicorn
from farm_kit import HOST
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from test_views import Broker
from uvicorn.server import ServerState

from fabric import bounds
from fabric.errors import StoreError
from fabric.web import connections, store
from fabric.web.asks import Heard
from fabric.web.attempts import Attempts
from fabric.web.connections import BoundedProtocol
from fabric.web.graphs import Graphs
from fabric.web.kept import Kept
from fabric.web.live import LivePages, TooMany
from fabric.web.paced import AT_ONCE, Paced
from fabric.web.store import StoreReader
from fabric.wire.messages import GraphStep

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after a second at ``/slow``, and without end at ``/long``."""

    async def without_end() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield b"x" * 65536

    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    long = scope["path"] == "/long"
    response = StreamingResponse(without_end()) if long else PlainTextResponse("here")
    await response(scope, receive, send)


@asynccontextmanager
async def served() -> AsyncIterator[Callable[[], Coroutine[None, None, Client]]]:
    """Connects to a server of the application."""
    config, state = uvicorn.Config(application, log_config=None), ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedProtocol(config, state, {}), HOST, 0)
    writers = []

    async def connect() -> Client:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        reader, writer = await asyncio.open_connection(sock=peer, limit=1024)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        while state.connections:
            await asyncio.sleep(0.01)


async def is_cut(client: Client) -> bool:
    """Whether the connection is cut within some seconds."""
    try:
        async with asyncio.timeout(5.0):
            return await client[0].read(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_connections_without_a_request_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SEND", 0.5)

    async def test() -> None:
        async with served() as connect:
            silent, dribbling, second, slow = [await connect() for _ in range(4)]
            slow[1].write(GET.replace(b"/ ", b"/slow "))
            second[1].write(GET)
            await second[0].readuntil(b"here")
            second[1].write(b"GET")
            for _ in range(8):
                if dribbling[1].is_closing():
                    break
                dribbling[1].write(b"G")
                await asyncio.sleep(0.1)
            assert [await is_cut(one) for one in (silent, dribbling, second)] == [True] * 3
            assert (await slow[0].readuntil(b"here")).startswith(b"HTTP/1.1 200"), "it may work"

    asyncio.run(test())


def test_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ", 0.5)

    async def test() -> None:
        async with served() as connect:
            reader, writer = await connect()
            writer.write(GET.replace(b"/ ", b"/long "))
            await asyncio.sleep(1.5)
            async with asyncio.timeout(5.0):  # otherwise it goes on without end
                with suppress(ConnectionError):
                    await reader.read()

    asyncio.run(test())


@pytest.mark.bound("WEB_CONNECTIONS")
def test_connections_past_the_bound_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_CONNECTIONS", 2)

    async def test() -> None:
        async with served() as connect:
            one, _, more = [await connect() for _ in range(3)]
            assert await is_cut(more)
            one[1].write(GET)
            await one[0].readuntil(b"here")

    asyncio.run(test())


# -- live pages ----------------------------------------------------------------------------


async def _empty() -> dict[str, str]:
    return {}


def follow(monkeypatch: pytest.MonkeyPatch, bound: str, *addresses: str) -> None:
    """Follow two pages, fail at the third, and follow that when the first is closed."""
    monkeypatch.setattr(bounds, bound, 2)

    async def test() -> None:
        pages = LivePages(print)
        with ExitStack() as stack, pages.watch(addresses[1], _empty):
            first = pages.watch(addresses[0], _empty)
            stack.enter_context(first)
            with pytest.raises(TooMany, match=r"^2 "), pages.watch(addresses[2], _empty):
                pass
            assert pages.viewers == 2
            stack.close()
            with pages.watch(addresses[2], _empty):
                pass
        assert pages.viewers == 0

    asyncio.run(test())


@pytest.mark.bound("WEB_VIEWERS")
def test_a_viewer_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, "WEB_VIEWERS", "/", "/", "/")


@pytest.mark.bound("WEB_LIVE_PAGES")
def test_a_live_page_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, "WEB_LIVE_PAGES", "/1", "/2", "/3")


def test_page_with_a_fault_does_not_seem_to_be_up_to_date() -> None:
    async def fails() -> dict[str, str]:
        raise ZeroDivisionError

    async def test() -> None:
        said: list[str] = []
        with LivePages(said.append).watch("/", fails) as events:
            event = await asyncio.wait_for(anext(events), 5.0)
            assert event.startswith(b"event: gone")
            assert b"This is a fault of distbuild (ZeroDivisionError)" in event
        assert "in fails" in said[0]

    asyncio.run(test())


# -- a store that hangs --------------------------------------------------------------------


def test_store_that_hangs_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LONGEST", 1.0)
    released = threading.Event()
    reader = StoreReader(lambda: cast("Any", None))

    async def test() -> None:
        async with asyncio.timeout(10.0):
            calls = [asyncio.create_task(reader.call(released.wait)) for _ in range(100)]
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "read") == "read"
            assert not any(call.done() for call in calls)
            for call in calls:
                with pytest.raises(StoreError, match="does not answer within 1 s"):
                    await call
            released.set()
            assert await reader.call(lambda: "again") == "again"

    try:
        asyncio.run(test())
    finally:
        released.set()


# -- what is kept --------------------------------------------------------------------------


def test_values_used_last_are_kept() -> None:
    async def test() -> None:
        kept: Kept[str, str] = Kept(len)

        async def has(*keys: str) -> str:
            found = [key for key in keys if await anext(_value(kept, key)) is not None]
            return "".join(found)

        for key in "abc":
            kept.keep(key, "x", 6)
        kept.keep("a", "x", 6)
        kept.keep("d", "x", 6)
        assert await has(*"abcd") == "acd", "b was used longest ago"
        kept.keep("e", "x" * 100, 6)
        assert await has(*"abcde") == "e", "one stays"

    async def _value(kept: Kept[str, str], key: str) -> AsyncIterator[str | None]:
        async with kept.turn(key) as value:
            yield value

    asyncio.run(test())


def test_steps_that_nobody_knows_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_ATTEMPTS", 10)

    async def test() -> None:
        attempts = Attempts(Broker(*(Heard("") for _ in range(100))))
        for number in range(100):
            await attempts.get(f"{number:064x}")
        assert len(attempts._known._values) == 10

    asyncio.run(test())


@pytest.mark.bound("WEB_STEPS")
def test_graphs_looked_at_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_STEPS", 3)
    steps = (GraphStep("a" * 64, "a", "chunk"), GraphStep("b" * 64, "b", "chunk"))
    broker = Broker(*(Heard("", graph=steps) for _ in range(3)))

    async def test() -> None:
        graphs = Graphs(broker)
        for id in ("r1", "r1", "r2", "r1"):
            await graphs.get(id)

    asyncio.run(test())
    assert [about for _, about, _ in broker.asked] == ["r1", "r2", "r1"]


def test_few_costly_views_are_made_at_a_time() -> None:
    busy = most = 0
    lock, waits = threading.Lock(), threading.Event()

    def make() -> str:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        waits.wait(0.2)
        with lock:
            busy -= 1
        return "made"

    async def test() -> None:
        paced = Paced()
        await asyncio.gather(*(paced.get(number, make) for number in range(3 * AT_ONCE)))

    asyncio.run(test())
    assert most == AT_ONCE
