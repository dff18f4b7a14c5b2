"""Build orders, from the broker over the resolver to the core."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from resolving_kit import COMMAND, gone, order
from waiting import until
from wire_kit import FakeWorker

from fabric.broker import assemble
from fabric.scheduling.model import Limits
from fabric.trove.artifacts.store import Store
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    Command,
    Desired,
    Poll,
    Query,
    Rejected,
    Report,
    Running,
    ToInitiator,
    Update,
)


class Threaded:
    """A broker with a resolver, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.limits = Limits()
        self.start()
        self._context = zmq.Context()
        self.jobs = sockets.dealer(self._context)
        sockets.connect(self.jobs, sockets.in_directory(directory).jobs)
        self.codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)

    def start(self) -> None:
        directory = self.directory

        def open_store() -> Store:
            return Store(str(directory / "store"), directory / "scratch")

        self.broker = assemble(
            sockets.in_directory(directory),
            directory / "state",
            open_store,
            self.limits,
            resolver=COMMAND,
        )
        self._thread = threading.Thread(target=self.broker.run)
        self._thread.start()

    def end(self) -> None:
        self.broker.stop()
        self._thread.join()
        self.broker.close()

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.end()

    def say(self, message: msgspec.Struct) -> None:
        sockets.send(self.jobs, self.codec.encode(message))

    def answer(self, question: Query | Command) -> Answer:
        self.say(question)
        while not isinstance(heard := self._next(), Answer):
            pass
        return heard

    def state(self, request: str) -> str:
        """The state of a request; "" if it is unknown."""
        update = self.update(request)
        return update.state if update else ""

    def update(self, request: str) -> Update | None:
        """The update of a request."""
        self.say(Poll(request, 0))
        while True:
            heard = self._next()
            if isinstance(heard, Update) and heard.request == request:
                return heard
            if isinstance(heard, Rejected):
                return None

    def _next(self) -> object:
        assert self.jobs.poll(60_000), "no answer"
        return self.codec.decode(self.jobs.recv())


@pytest.fixture
def threaded(directory: Path) -> Iterator[Threaded]:
    made = Threaded(directory)
    yield made
    made.close()


def requests() -> Query:
    return Query(PROTOCOL, "q", "requests")


def why(about: str) -> Query:
    return Query(PROTOCOL, "q", "why", about)


def test_build_order_is_built(threaded: Threaded) -> None:
    worker = FakeWorker(threaded.directory, "w1")
    try:
        threaded.say(order(1))
        until(lambda: threaded.state(order(1).request) == "done")
    finally:
        worker.stop()
    assert worker.built == ["zlib", "app"]


def test_build_order_can_be_cancelled_while_it_is_resolved(
    threaded: Threaded, directory: Path
) -> None:
    threaded.say(order(1, f"hang {directory}/pid"))
    until((directory / "pid").exists)
    began = time.monotonic()
    for _ in range(20):
        assert threaded.state(order(1).request) == "resolving"
    assert time.monotonic() - began < 5.0
    assert threaded.answer(Command(PROTOCOL, "c", "cancel", order(1).request)).error == ""
    until(lambda: gone(int((directory / "pid").read_text())))
    assert threaded.state(order(1).request) == "cancelled"


def test_restart_continues_detached_requests_and_knows_old_ones(
    threaded: Threaded, directory: Path
) -> None:
    threaded.say(order(1, "fail no such system", detach=True))
    until(lambda: threaded.state(order(1).request) == "failed")
    threaded.say(order(2, f"when {directory}/go", detach=True))
    until(lambda: threaded.state(order(2).request) == "resolving")
    threaded.answer(Command(PROTOCOL, "c", "drain", "w2"))
    threaded.end()
    threaded.start()
    (directory / "go").touch()
    worker = FakeWorker(directory, "w1")
    try:
        until(lambda: threaded.state(order(2).request) == "done")
    finally:
        worker.stop()
    told = {each.request: each for each in threaded.answer(requests()).requests}
    assert told[order(1).request].state == "failed"
    assert told[order(1).request].message == "no such system"
    assert told[order(2).request].done == 2
    assert threaded.state(order(1).request) == "failed"
    assert threaded.state(order(3).request) == ""


def test_restart_knows_the_ends_of_requests_and_their_steps(threaded: Threaded) -> None:
    def told() -> tuple[object, ...]:
        questions = (why("zlib"), why(order(1).request), Query(PROTOCOL, "q", "logs", "zlib"))
        [request] = threaded.answer(requests()).requests
        update = threaded.update(order(1).request)
        return (*map(threaded.answer, questions), (request.done, request.total), update)

    worker = FakeWorker(threaded.directory, "w1")
    try:
        threaded.say(order(1, detach=True))
        until(lambda: threaded.state(order(1).request) == "done")
    finally:
        worker.stop()
    before = told()
    for _ in range(2):
        threaded.end()
        threaded.start()
        assert told() == before
    update = threaded.update(order(1).request)
    assert update is not None
    assert [step.name for step in update.steps] == ["zlib", "app"]


def test_restart_drops_requests_without_an_initiator(threaded: Threaded) -> None:
    threaded.end()
    threaded.limits = Limits(patience=0.5)
    threaded.start()
    threaded.say(order(1))
    until(lambda: len(threaded.answer(requests()).requests) == 1)
    until(lambda: threaded.answer(requests()).requests == ())
    threaded.end()
    threaded.start()
    assert threaded.answer(requests()).requests == ()


def test_restart_begins_nothing_twice_that_still_runs(threaded: Threaded, directory: Path) -> None:
    """The request was cancelled, but the broker ended before its worker was notified."""
    context = zmq.Context()
    w1 = sockets.dealer(context)
    sockets.connect(w1, sockets.ipc(directory, "jobs"))
    codec: sockets.Codec[Desired] = sockets.Codec(Desired)

    def report(sequence: int, *running: Running) -> None:
        told = Report(PROTOCOL, "w1", "x86_64", 1, sequence, running=running, instance="a")
        w1.send(codec.encode(told))

    def hear() -> Desired:
        assert w1.poll(60_000), "no answer"
        return codec.decode(w1.recv())

    report(1)
    threaded.say(order(1, detach=True))
    while not (told := hear()).start:
        pass
    [job] = told.start
    running = Running(job.key, job.fence, token=job.token)
    report(2, running)
    threaded.answer(Command(PROTOCOL, "c", "cancel", order(1).request))
    threaded.end()
    threaded.start()
    w2 = FakeWorker(directory, "w2")
    try:
        threaded.say(order(2, detach=True))
        until(lambda: "has just started" in "".join(threaded.answer(why("zlib")).lines))
        report(3, running)
        while (desired := hear()).epoch == told.epoch:
            pass  # a reply that came late
        assert [(each.key, each.fence) for each in desired.keep] == [(job.key, job.fence)]
        assert "building on w1" in threaded.answer(why("zlib")).lines[0]
    finally:
        w2.stop()
        context.destroy(linger=0)
    assert w2.built == []
