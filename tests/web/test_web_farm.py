"""The web page's client, with real brokers: builds on this machine, and a controller over TCP."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fabric_kit import Fabric
from farm_kit import HOST, PORT, Peer, report
from farm_kit import Farm as Controller
from wire_kit import key_of

from fabric import bounds
from fabric.client.running import ALIVE, announce, link_to
from fabric.config import Settings
from fabric.errors import FabricError, MachineFault
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.store import Store
from fabric.web.farm import LOOK_EVERY, READ_AT_ONCE, READ_RATE, REUSE_MOST, Farm
from fabric.wire import sockets
from fabric.wire.connection import Connection
from fabric.wire.messages import Outcome, Published, Running

KEY = key_of("zlib")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def until(condition: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Wait until the condition is true; returns its value."""
    while not (found := await condition()):
        await asyncio.sleep(0.02)
    return found


# -- builds on this machine ----------------------------------------------------------------


class Here:
    """Builds of this user that run on this machine: a broker process for each."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.settings = Settings(cache=str(directory / "cache"))
        self._directory = directory
        self._stack = stack
        self._locks: dict[str, ExitStack] = {}

    def build(self, name: str) -> Fabric:
        folder = self._directory / name
        folder.mkdir(mode=0o700)
        self._locks[name] = self._stack.enter_context(ExitStack())
        lock = self._locks[name].enter_context((folder / ALIVE).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        announce(link_to(self.settings.state_dir, folder), folder)
        return Fabric(folder, self._stack)

    def end(self, name: str) -> None:
        """As if the build was killed: its lock is free, and its folder stays."""
        self._locks[name].close()


@pytest.fixture
def here(directory: Path) -> Iterator[Here]:
    with ExitStack() as stack:
        yield Here(directory, stack)


def test_farm_without_builds_has_empty_answers(here: Here) -> None:
    async def test() -> None:
        async with Farm(here.settings) as farm:
            answer = await farm.query("requests")
            assert (answer.requests, answer.error, farm.error) == ((), "", "")
            assert await farm.read_log(KEY, 0, 0) is None

    run(test())


def test_farm_shows_all_builds_of_this_machine(here: Here) -> None:
    async def test() -> None:
        async with Farm(here.settings) as farm:
            for name in ("one", "two"):
                fabric = here.build(name)
                fabric.worker(name)
                assert await asyncio.to_thread(fabric.initiator(f"step-{name}").follow) == "done"

            async def names() -> bool:
                found = await farm.query("workers")
                return [each.name for each in found.workers] == ["one", "two"]

            await until(names)
            assert len((await farm.query("requests")).requests) == 2
            for name in ("one", "two"):
                key = key_of(f"step-{name}")
                [log] = (await farm.query("logs", key)).logs
                piece = await farm.read_log(key, log.fence, 0)
                assert piece is not None
                assert piece.data == f"building step-{name}\n".encode()
                assert (await farm.query("why", f"step-{name}")).lines
            with pytest.raises(FabricError, match="'nothing': no such build or step"):
                await farm.query("why", "nothing")

    run(test())


def test_farm_forgets_a_build_that_ends(here: Here) -> None:
    async def test() -> None:
        async with Farm(here.settings) as farm:
            one, _ = here.build("one"), here.build("two")

            async def brokers(number: int) -> bool:
                await farm.query("requests")
                return len(farm._brokers) == number

            await until(lambda: brokers(2))
            one.broker.end()
            shutil.rmtree(one.directory)
            began = time.monotonic()
            await farm.query("requests")
            assert time.monotonic() - began < 2 * LOOK_EVERY + 1.5, "it holds up the others"
            await until(lambda: brokers(1))
            here.end("two")  # killed: its folder stays
            await until(lambda: brokers(0))

    run(test())


# -- a controller --------------------------------------------------------------------------


def settings_of(controller: Controller) -> Settings:
    controller.key("viewer", "web")
    keys = controller.directory / "web"
    return Settings(
        cache=str(controller.directory / "cache"), controller=f"{HOST}:{PORT}", keys=str(keys)
    )


@contextlib.asynccontextmanager
async def opened(controller: Controller) -> AsyncIterator[Farm]:
    async with Farm(settings_of(controller)) as farm:
        await until_answered(farm)
        yield farm


async def ask(farm: Farm) -> None:
    """Ask something that was not asked before."""
    await farm.query("update", str(time.monotonic_ns()))


async def until_answered(farm: Farm) -> None:
    async def answered() -> bool:
        with contextlib.suppress(MachineFault):
            await ask(farm)
            return True
        return False

    await until(answered)


def builder(controller: Controller, fence: int = 7) -> Peer:
    """A worker that builds `KEY`."""
    worker = controller.peer(controller.key("worker", "w1"))
    worker.ask(report("w1"))
    running = Running(KEY, fence, token=controller.token(KEY, fence, "w1"))
    worker.ask(report("w1", 2, running=(running,)))
    return worker


def print_log(worker: Peer, offset: int, data: bytes, fence: int = 7) -> None:
    sockets.send(worker.stream, Published(KEY, fence, offset, data).frame())


def test_farm_reads_a_stored_log_of_a_controller(farm: Controller) -> None:
    log = b"a line\n" * 400_000
    blob = Blob.of(log)
    manifest = Manifest(key=KEY, kind="chunk", name="zlib", arch="x86_64", artifacts=(), log=blob)
    store = Store(str(farm.directory / "store"), farm.directory / "scratch")
    store.put(manifest, {blob.sha256: log})

    async def test() -> None:
        async with opened(farm) as client:
            found = b""
            while piece := await client.read_log(KEY, 1, len(found)):
                found += piece.data
                assert (piece.size, piece.sha256) == (len(log), blob.sha256)
                if len(found) == piece.size:
                    break
            assert found == log
            piece = await client.read_log(KEY, 1, 100, length=10)
            assert piece is not None
            assert piece.data == log[100:110]
            assert await client.read_log("f" * 64, 1, 0) is None

    run(test())


def test_farm_reads_logs_at_a_limited_rate(farm: Controller) -> None:
    """Reads without end leave the viewer's share of the broker's time to questions."""

    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client:
            await asyncio.sleep(0.1)
            print_log(worker, 0, b"x" * 200_000)
            began, size = time.monotonic(), 0
            while size < READ_AT_ONCE + 2 * READ_RATE:
                await client.read_log(KEY, 7, size % 1000)
                size += bounds.LOG_RANGE
            assert time.monotonic() - began > 1.8
            await client.query("requests")
            assert client.error == ""

    run(test())


def test_farm_follows_a_log(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client, client.follow(KEY) as pieces:
            size = 0
            while size < 100:  # the first ones may come before the subscription
                print_log(worker, size, b"x" * 10)
                size += 10
                await asyncio.sleep(0.01)
            have = 0
            async for piece in pieces:
                assert (piece.key, piece.fence) == (KEY, 7)
                have = piece.offset + len(piece.data)
                if have == size:
                    break
            read = await client.read_log(KEY, 0, 0)
            assert read is not None
            assert (read.data, read.fence, read.ended) == (b"x" * 100, 7, False)
        assert not client._followers

    run(test())


def test_farm_ends_subscriptions(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client:
            async with client.follow(KEY) as first:
                async with client.follow(KEY) as second:
                    await asyncio.sleep(0.2)
                    print_log(worker, 0, b"one")
                    for pieces in (first, second):
                        assert (await anext(pieces)).data == b"one"
                print_log(worker, 3, b"two")
                assert (await anext(first)).data == b"two"
            [broker] = client._brokers.values()
            await until_answered(client)  # so that the thread has taken all orders
            assert not broker._connection._topics

    run(test())


@pytest.mark.bound("WEB_PIECES")
def test_farm_drops_the_oldest_pieces_of_a_slow_follower(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client, client.follow(KEY) as pieces:
            await asyncio.sleep(0.2)
            number = 3 * bounds.WEB_PIECES
            for n in range(number):
                print_log(worker, 10 * n, b"%9d\n" % n)
                await asyncio.sleep(0.005)

            async def has_all() -> bool:
                piece = await client.read_log(KEY, 7, 0)
                return piece is not None and len(piece.data) == 10 * number

            await until(has_all)

            async def has_come() -> bool:
                [queue] = client._followers[KEY]
                newest = [piece.offset for piece in queue._queue]  # type: ignore[attr-defined]
                return newest[-1:] == [10 * (number - 1)]

            await until(has_come)
            kept = [await anext(pieces) for _ in range(bounds.WEB_PIECES)]
            assert [piece.offset for piece in kept] == [
                10 * n for n in range(number - bounds.WEB_PIECES, number)
            ]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(pieces), 0.1)

    run(test())


@pytest.mark.bound("WEB_PIECES")
def test_few_pieces_wait_while_the_loop_is_busy(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client, client.follow(KEY):
            await asyncio.sleep(0.2)
            [broker] = client._brokers.values()
            for n in range(3 * bounds.WEB_PIECES):
                print_log(worker, 10 * n, b"%9d\n" % n)
                time.sleep(0.01)  # the loop does not go on
            deadline = time.monotonic() + 60.0
            while not broker._pieces or broker._pieces[-1].offset < 10 * n:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert len(broker._pieces) == bounds.WEB_PIECES

    run(test())


def test_farm_sends_equal_questions_once(farm: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: set[bytes] = set()  # one that is repeated is the same
    send = Connection.send

    def count(self: Connection, frame: bytes) -> bool:
        sent.add(bytes(frame))
        return send(self, frame)

    async def test() -> None:
        async with opened(farm) as client:
            monkeypatch.setattr(Connection, "send", count)
            answers = await asyncio.gather(*(client.query("workers") for _ in range(200)))
            assert all(answer is answers[0] for answer in answers)
            assert len([frame for frame in sent if b"workers" in frame]) == 1
            monkeypatch.undo()
            # an answer that took a while is used for a while, and says how old it is
            assert await client.query("workers") is answers[0]
            await asyncio.sleep(0.05)
            before = time.monotonic()
            assert 0.05 <= before - answers[0].heard <= answers[0].age
            assert answers[0].age <= time.monotonic() - answers[0].heard
            assert answers[0].asked < answers[0].heard
            until_new = time.monotonic() + REUSE_MOST
            while await client.query("workers") is answers[0]:
                assert time.monotonic() < until_new
                await asyncio.sleep(0.01)

    run(test())


def test_farm_uses_an_answer_that_comes_late(farm: Controller) -> None:
    """The broker is there, but slow: pages do not ask in vain again and again."""

    async def test() -> None:
        async with opened(farm) as client:
            farm.child.send_signal(signal.SIGSTOP)
            while not client.error:
                with pytest.raises(MachineFault, match=r"^no answer: "):
                    await client.query("why", "late")
            assert ("why", "late", 0) in client._asked, "it is still awaited"
            farm.child.send_signal(signal.SIGCONT)
            await until_answered(client)
            assert client.error == ""

    run(test())


def test_farm_answers_others_if_one_gives_up(farm: Controller) -> None:
    async def test() -> None:
        async with opened(farm) as client:
            first = asyncio.create_task(client.query("workers"))
            second = asyncio.create_task(client.query("workers"))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).workers == ()

    run(test())


@pytest.mark.bound("WEB_QUESTIONS")
def test_farm_bounds_its_questions(farm: Controller) -> None:
    async def test() -> None:
        async with opened(farm) as client:
            farm.child.send_signal(signal.SIGSTOP)
            asked = [
                asyncio.create_task(client.query("why", str(n)))
                for n in range(bounds.WEB_QUESTIONS)
            ]
            await asyncio.sleep(0)
            with pytest.raises(MachineFault, match=r"^256 questions wait for the broker: try"):
                await ask(client)
            farm.child.send_signal(signal.SIGCONT)
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert all("no such build" in str(error) for error in errors)
            await ask(client)

    run(test())


def test_farm_says_soon_that_the_broker_is_away_and_finds_it_again(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client, client.follow(KEY) as pieces:
            farm.kill()

            async def away() -> str:
                return client.error

            assert "cannot be reached" in await until(away)
            began = time.monotonic()
            with pytest.raises(
                MachineFault,
                match=rf"^no answer: tcp://{HOST}:{PORT} cannot be reached; is fabric-broker",
            ):
                await ask(client)
            assert time.monotonic() - began < 2.5
            with pytest.raises(MachineFault, match="no answer"):
                await client.read_log(KEY, 7, 0)
            farm.start()
            await until_answered(client)
            assert client.error == ""
            running = Running(KEY, 7, token=farm.token(KEY, 7, "w1"))
            worker.say(report("w1", 3, running=(running,)))
            size = 0
            async with asyncio.timeout(60):
                while True:  # the subscription was made again
                    print_log(worker, size, b"x")
                    size += 1
                    with contextlib.suppress(TimeoutError):
                        piece = await asyncio.wait_for(anext(pieces), 0.1)
                        break
            assert piece.key == KEY

    run(test())


def test_farm_without_an_admitted_key_says_so(farm: Controller) -> None:
    settings = settings_of(farm)
    for file in (farm.keys / "admitted").iterdir():
        file.unlink()

    async def test() -> None:
        async with Farm(settings) as client:
            with pytest.raises(MachineFault, match="does not admit the key of web"):
                await client.query("requests")

    run(test())


def test_farm_fails_questions_when_it_closes(farm: Controller) -> None:
    async def test() -> None:
        client = Farm(settings_of(farm))
        async with client:
            await until_answered(client)
            farm.child.send_signal(signal.SIGSTOP)
            asked = asyncio.create_task(ask(client))
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await asked
        farm.child.send_signal(signal.SIGCONT)

    run(test())


def test_farm_reads_the_end_of_a_log(farm: Controller) -> None:
    async def test() -> None:
        worker = builder(farm)
        async with opened(farm) as client:
            await asyncio.sleep(0.1)
            print_log(worker, 0, b"over\n")

            async def has_it() -> bool:
                piece = await client.read_log(KEY, 7, 0)
                return piece is not None and piece.data != b""

            await until(has_it)
            token = farm.token(KEY, 7, "w1")
            end = Outcome(KEY, 7, "failed", log_size=5, log_sha256="0" * 64, token=token)
            worker.say(report("w1", 3, finished=(end,)))

            async def ended() -> bool:
                piece = await client.read_log(KEY, 7, 0)
                return piece is None or piece.ended

            await until(ended)

    run(test())
