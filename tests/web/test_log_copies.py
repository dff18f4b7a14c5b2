"""Copies of logs, from a scripted broker and a real store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from wire_kit import key_of

from fabric import bounds
from fabric.errors import MachineFault
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.store import Store
from fabric.web import log_copies, log_copy
from fabric.web.asks import Heard, NotFound
from fabric.web.farm import _Pieces
from fabric.web.log_copies import LogCopies
from fabric.web.log_copy import LogCopy
from fabric.web.store import StoreReader
from fabric.wire.messages import AttemptInfo, LogInfo, LogPiece, Published

KEY = key_of("zlib")


class Broker:
    """A broker with the log of one attempt."""

    error = ""

    def __init__(self, log: bytes = b"", state: Any = "running", result: Any = "") -> None:
        self.log = log
        self.state = state
        self.result = result
        self.ended = False
        self.sha256: str | None = None  # a wrong one
        self.reads: list[int] = []
        self.slow = 0.0
        self.gone = False
        self.pieces: asyncio.Queue[Published] = asyncio.Queue()

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:  # noqa: ARG002
        if about != KEY or not (self.log or self.ended):
            return Heard("")
        if what == "attempts":
            attempt = AttemptInfo(KEY, 7, "zlib", "chunk", "amber", 1.0, 1.0, 0, self.result)
            return Heard("", attempts=(attempt,) if self.result else ())
        return Heard("", logs=(LogInfo(KEY, 7, "zlib", "build-step-zlib.log", self.state),))

    async def read_log(
        self, key: str, fence: int, offset: int, length: int = bounds.LOG_RANGE
    ) -> LogPiece | None:
        self.reads.append(offset)
        await asyncio.sleep(self.slow)
        if key != KEY or self.gone:
            return None
        data = self.log[offset : offset + length]
        size, digest = -1, ""
        if self.ended:
            size, digest = len(self.log), self.sha256 or hashlib.sha256(self.log).hexdigest()
        return LogPiece(key, fence, offset, data, size, digest, self.ended)

    @contextlib.asynccontextmanager
    async def follow(self, key: str) -> AsyncIterator[AsyncIterator[Published]]:  # noqa: ARG002
        yield _Pieces(self.pieces)

    def publish(self, data: bytes) -> None:
        self.pieces.put_nowait(Published(KEY, 7, len(self.log), data))
        self.log += data


@contextlib.asynccontextmanager
async def copies_of(broker: Broker, directory: Path) -> AsyncIterator[LogCopies]:
    reader = StoreReader(lambda: Store(str(directory / "store"), directory / "scratch"))
    async with LogCopies(broker, reader, directory / "web") as copies:
        yield copies


def put(directory: Path, name: str, log: bytes) -> str:
    blob = Blob.of(log)
    manifest = Manifest(
        key=key_of(name), kind="chunk", name=name, arch="x86_64", artifacts=(), log=blob
    )
    Store(str(directory / "store"), directory / "scratch").put(manifest, {blob.sha256: log})
    return manifest.key


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def until(copy: LogCopy, condition: Callable[[], object]) -> None:
    while not condition():
        await copy.changed(0.05)


def test_copy_takes_the_stream_and_reads_gaps(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Broker(b"one\n")
        async with copies_of(broker, tmp_path) as copies, copies.open(KEY) as copy:
            await until(copy, lambda: copy.current)
            reads = len(broker.reads)
            broker.publish(b"two\n")
            await until(copy, lambda: copy.file.size == 8)
            assert len(broker.reads) == reads, "the stream brought it"
            broker.log += b"lost\n"
            broker.publish(b"three\n")
            await until(copy, lambda: copy.file.size == 19)
            assert copy.file.read(0, 100) == b"one\ntwo\nlost\nthree\n"
            broker.pieces.put_nowait(Published(KEY, 7, 2, b"e\ntwo\n"))
            broker.pieces.put_nowait(Published(KEY, 8, 19, b"of another attempt"))
            broker.publish(b"end\n")
            await until(copy, lambda: copy.file.size == 23)
            broker.ended = True
            await until(copy, lambda: copy.whole)
            assert copy.problem == ""

    run(test())


def test_copy_with_a_wrong_digest_is_made_once_more(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Broker(b"one\n", "failed", "failed")
        broker.ended, broker.sha256 = True, "0" * 64
        async with copies_of(broker, tmp_path) as copies, copies.open(KEY) as copy:
            await until(copy, lambda: copy.ended)
            assert copy.problem == "its digest is wrong"
            assert copy.file.read(0, 10) == b"one\n"
            assert broker.reads.count(0) == 3, "to find it, and two times to read it"

    run(test())


def test_end_is_shown_before_the_rest_is_copied(tmp_path: Path) -> None:
    """Its line is not known until the copy has caught up."""
    log = b"".join(b"line %d\n" % n for n in range(2_000_000))

    async def test() -> None:
        broker = Broker(log, "failed", "failed")
        broker.ended, broker.slow = True, 0.3
        async with copies_of(broker, tmp_path) as copies, copies.open(KEY) as copy:
            rows = await copy.tail(65_536)
            assert copy.file.size < len(log) / 2
            assert rows.data.endswith(b"line 1999999\n")
            assert rows.data.startswith(b"line 19")
            assert (rows.line, rows.offset) == (0, len(log) - len(rows.data))
            broker.slow = 0.0
            await until(copy, lambda: copy.whole)
            rows = await copy.tail(65_536)
            assert rows.data.startswith(b"line %d\n" % (rows.line - 1))

    run(test())


def test_rest_of_a_log_comes_from_the_store(tmp_path: Path) -> None:
    """The broker forgets a log after some time."""

    async def test() -> None:
        broker = Broker(b"one\n")
        async with copies_of(broker, tmp_path) as copies, copies.open(KEY) as copy:
            await until(copy, lambda: copy.current)
            put(tmp_path, "zlib", b"one\ntwo\n")
            broker.gone = True
            await until(copy, lambda: copy.whole)
            assert copy.file.read(0, 10) == b"one\ntwo\n"
            assert copy.problem == ""

    run(test())


def test_log_goes_on_when_the_broker_knows_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart, the broker has no log of an attempt until its worker reports it."""

    async def test() -> None:
        broker = Broker(b"one\n")
        async with copies_of(broker, tmp_path) as copies, copies.open(KEY) as copy:
            await until(copy, lambda: copy.current)
            broker.gone = True
            await until(copy, lambda: "not have this log yet" in copy.problem)
            assert not copy.ended
            broker.gone = False
            broker.log += b"two\n"
            await until(copy, lambda: copy.file.size == 8)
            assert copy.problem == ""
            monkeypatch.setattr(log_copy, "UNKNOWN", 0.0)
            broker.gone = True
            await until(copy, lambda: copy.ended)
            assert copy.problem == "the controller does not keep the rest of this log any more"

    run(test())


def test_stored_log_is_not_taken_for_that_of_a_failed_attempt(tmp_path: Path) -> None:
    """The broker answers with the log in the store if it has no other."""
    put(tmp_path, "zlib", b"of another attempt\n")

    async def test() -> None:
        broker = Broker(b"of another attempt\n", "failed", "failed")
        broker.ended = True
        async with copies_of(broker, tmp_path) as copies:
            with pytest.raises(NotFound, match="there is no log of this attempt at step"):
                async with copies.open(KEY, 7):
                    pass
            async with copies.open(KEY) as copy:
                assert (copy.named.fence, copy.named.state) == (0, "done")

    run(test())


def test_copy_is_not_continued_while_nobody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copies, "IDLE", 0.3)

    async def test() -> None:
        broker = Broker(b"one\n")
        async with copies_of(broker, tmp_path) as copies:
            async with copies.open(KEY) as copy:
                await until(copy, lambda: copy.current)
                await asyncio.sleep(0.6)
                assert copy.current
            await asyncio.sleep(0.8)
            assert not copies._copies[KEY, 7].current
            broker.log += b"two\n"
            async with copies.open(KEY) as again:
                assert again is copy
                await until(copy, lambda: copy.file.size == 8)

    run(test())


@pytest.mark.bound("WEB_LOGS_DISK")
def test_copies_have_room_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_LOGS_DISK", 2_500_000)
    monkeypatch.setattr(log_copy, "RETRY", 0.05)
    keys = [put(tmp_path, f"step-{n}", b"%d" % n * 1_000_000) for n in range(3)]

    async def test() -> None:
        async with copies_of(Broker(), tmp_path) as copies:
            async with copies.open(keys[0]) as first:
                await until(first, lambda: first.whole)
            async with copies.open(keys[1]) as second:
                await until(second, lambda: second.whole)
                async with copies.open(keys[2]) as third:
                    await until(third, lambda: third.whole)
                    assert len(copies._copies) == 2, "the first one made room"
                    async with copies.open(keys[0]) as again:
                        assert again is not first
                        await until(again, lambda: again.problem)
                        begin = "the logs that are looked at have 2,500,000"
                        assert again.problem.startswith(begin)
                        with pytest.raises(MachineFault, match="there is no room for more"):
                            await again.wait_for(1)

    run(test())


@pytest.mark.bound("WEB_FREE_DISK")
def test_copies_leave_disk_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a controller, the journal is on the same disk."""
    monkeypatch.setattr(log_copy, "RETRY", 0.05)
    keys = [put(tmp_path, f"step-{n}", b"%d" % n * 1_000_000) for n in range(2)]

    async def test() -> None:
        async with copies_of(Broker(), tmp_path) as copies:
            async with copies.open(keys[0]) as first:
                await until(first, lambda: first.whole)
            monkeypatch.setattr(bounds, "WEB_FREE_DISK", 1 << 60)
            async with copies.open(keys[1]) as second:
                await until(second, lambda: second.problem)
                assert re.match(
                    rf"{tmp_path}.*: [0-9,]+ bytes are free on that disk, and logs that are looked"
                    " at leave 1,152,921,504,606,846,976 to others",
                    second.problem,
                )
                assert second.file.size == 0
                assert list(copies._copies.values()) == [second], "the first one was removed"
                monkeypatch.setattr(bounds, "WEB_FREE_DISK", 0)
                await until(second, lambda: second.whole)

    run(test())


@pytest.mark.bound("WEB_LOGS")
def test_no_more_logs_are_shown_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "WEB_LOGS", 2)
    keys = [put(tmp_path, f"step-{n}", b"%d\n" % n) for n in range(3)]

    async def test() -> None:
        async with copies_of(Broker(), tmp_path) as copies:
            async with copies.open(keys[0]), copies.open(keys[1]):
                with pytest.raises(MachineFault, match="2 logs are looked at, and no more can be"):
                    async with copies.open(keys[2]):
                        pass
            async with copies.open(keys[2]) as copy:
                await until(copy, lambda: copy.whole)

    run(test())
