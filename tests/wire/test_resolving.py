"""Children that resolve orders, and a broker that has some."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from waiting import until
from wire_kit import FakeWorker, offers_of

from fabric.broker import assemble
from fabric.resolving import Resolvers
from fabric.scheduling.events import Resolved, Unresolved
from fabric.scheduling.model import Limits
from fabric.trove.store import Store
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    Command,
    Desired,
    Order,
    Poll,
    Query,
    Refused,
    Report,
    Running,
    ToInitiator,
    Update,
)

#: A resolver that does what the name of the system says.
PROGRAM = """
import os, sys, time, msgspec
from fabric.wire.messages import Offer, Order, Submit, PROTOCOL
from wire_kit import offers_of
order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
word, _, rest = order.system.partition(" ")
if word == "fail":
    sys.exit(rest)
if word == "hang":
    if os.fork() == 0:
        time.sleep(600)
    open(rest + ".new", "w").write(str(os.getpid()))
    os.rename(rest + ".new", rest)
    time.sleep(600)
if word == "once" and not os.path.exists(rest):
    open(rest, "w").close()
    print("the trove is away", file=sys.stderr)
    sys.exit(4)
if word == "rubbish":
    sys.stdout.write("hello")
    sys.exit(0)
if word == "when":
    while not os.path.exists(rest):
        time.sleep(0.01)
steps = offers_of("app: zlib\\nzlib:")
submit = Submit(PROTOCOL, order.request, order.title, steps, (steps[0].key,),
                detach=order.detach, requester=order.requester)
sys.stdout.buffer.write(msgspec.msgpack.encode(submit))
"""
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}",
)


def order(number: int, system: str = "x", *, detach: bool = False) -> Order:
    return Order(PROTOCOL, f"{number:032x}", "a test", "refs/x", "c" * 40, system, detach=detach)


def answers_of(resolvers: Resolvers, number: int) -> list[Resolved | Unresolved]:
    found: list[Resolved | Unresolved] = []

    def enough() -> bool:
        found.extend(resolvers.answers())
        return len(found) >= number

    until(enough)
    return found


@pytest.fixture
def resolvers() -> Iterator[Resolvers]:
    made = Resolvers(COMMAND, lambda: None)
    yield made
    made.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("resolve ")])


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_order_is_resolved(resolvers: Resolvers) -> None:
    resolvers.resolve(order(1))
    [resolved] = answers_of(resolvers, 1)
    assert isinstance(resolved, Resolved)
    assert resolved.submit.steps == offers_of("app: zlib\nzlib:")


def test_what_is_wrong_is_told(resolvers: Resolvers) -> None:
    resolvers.resolve(order(1, "fail s.morph:3: no such chunk"))
    resolvers.resolve(order(2, "rubbish"))
    told = {answer.request: answer for answer in answers_of(resolvers, 2)}
    first, second = told[order(1).request], told[order(2).request]
    assert isinstance(first, Unresolved)
    assert first.message == "s.morph:3: no such chunk"
    assert isinstance(second, Unresolved)
    assert "what the resolver says cannot be understood" in second.message


def test_what_is_no_fault_of_the_order_is_tried_again(resolvers: Resolvers, tmp_path: Path) -> None:
    resolvers.resolve(order(1, f"once {tmp_path}/tried"))
    [resolved] = answers_of(resolvers, 1)
    assert isinstance(resolved, Resolved)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    resolvers = Resolvers([str(tmp_path / "nothing")], lambda: None)
    resolvers.resolve(order(1))
    [answer] = answers_of(resolvers, 1)
    assert isinstance(answer, Unresolved)
    assert "No such file" in answer.message


def test_few_at_a_time_and_the_abandoned_are_killed_with_all_they_started(
    resolvers: Resolvers, tmp_path: Path
) -> None:
    for n in (1, 2, 3):
        resolvers.resolve(order(n, f"hang {tmp_path}/{n}" if n < 3 else "x"))
    until(lambda: all((tmp_path / str(n)).exists() for n in (1, 2)))
    assert list(resolvers.answers()) == []
    pids = [int((tmp_path / str(n)).read_text()) for n in (1, 2)]
    resolvers.abandon(order(1).request)
    [resolved] = answers_of(resolvers, 1)
    assert resolved.request == order(3).request
    until(lambda: gone(pids[0]))
    assert not gone(pids[1])
    resolvers.close()
    until(lambda: gone(pids[1]))


# -- in a broker ---------------------------------------------------------------------------


class Threaded:
    """A broker in a thread that resolves orders, as one on a network does."""

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
        """Of a request; "" if it is not known."""
        update = self.update(request)
        return update.state if update else ""

    def update(self, request: str) -> Update | None:
        """All that is known of a request."""
        self.say(Poll(request, 0))
        while True:
            heard = self._next()
            if isinstance(heard, Update) and heard.request == request:
                return heard
            if isinstance(heard, Refused):
                return None

    def _next(self) -> object:
        assert self.jobs.poll(10_000), "no answer"
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


def test_an_order_is_built(threaded: Threaded) -> None:
    worker = FakeWorker(threaded.directory, "w1")
    try:
        threaded.say(order(1))
        until(lambda: threaded.state(order(1).request) == "done")
    finally:
        worker.stop()
    assert worker.built == ["zlib", "app"]


def test_the_broker_answers_while_a_resolver_works_and_can_be_told_to_give_up(
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


def test_after_a_restart_a_detached_request_goes_on_and_old_ones_are_known(
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


def test_how_a_request_ended_is_known_after_a_restart_with_its_steps(threaded: Threaded) -> None:
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


def test_what_its_initiator_left_without_a_word_does_not_come_back(threaded: Threaded) -> None:
    threaded.end()
    threaded.limits = Limits(patience=0.5)
    threaded.start()
    threaded.say(order(1))
    until(lambda: len(threaded.answer(requests()).requests) == 1)
    until(lambda: threaded.answer(requests()).requests == ())
    threaded.end()
    threaded.start()
    assert threaded.answer(requests()).requests == ()


def test_after_a_restart_nothing_begins_twice_that_a_worker_was_not_told_to_end(
    threaded: Threaded, directory: Path
) -> None:
    """The request was cancelled, and the broker ended before its worker heard so."""
    context = zmq.Context()
    w1 = sockets.dealer(context)
    sockets.connect(w1, sockets.ipc(directory, "jobs"))
    codec: sockets.Codec[Desired] = sockets.Codec(Desired)

    def report(sequence: int, *running: Running) -> None:
        told = Report(PROTOCOL, "w1", "x86_64", 1, sequence, running=running, instance="a")
        w1.send(codec.encode(told))

    def hear() -> Desired:
        assert w1.poll(10_000), "no answer"
        return codec.decode(w1.recv())

    report(1)
    threaded.say(order(1, detach=True))
    while not (told := hear()).start:
        pass
    [job] = told.start
    running = Running(job.key, job.fence)
    report(2, running)
    threaded.answer(Command(PROTOCOL, "c", "cancel", order(1).request))
    threaded.end()
    threaded.start()
    w2 = FakeWorker(directory, "w2")
    try:
        threaded.say(order(2, detach=True))
        until(lambda: "has just started" in "".join(threaded.answer(why("zlib")).lines))
        report(3, running)
        while (desired := hear()).broker == told.broker:
            pass  # what it did not heed
        assert [(each.key, each.fence) for each in desired.keep] == [(job.key, job.fence)]
        assert "building on w1" in threaded.answer(why("zlib")).lines[0]
    finally:
        w2.stop()
        context.destroy(linger=0)
    assert w2.built == []
