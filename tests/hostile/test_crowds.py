"""The cost of one key with many connections that sends much and reads nothing is bounded."""

from __future__ import annotations

import itertools
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from farm_kit import HOST, PORT, Farm, report
from waiting import until
from wire_kit import resident

from fabric import bounds
from fabric.controller.outbox import UPDATE_COST, ReplyOutbox
from fabric.wire import keys, sockets
from fabric.wire.keys import Authenticator, AuthorizedKeys, Certificate
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildOrder,
    LogPiece,
    LogRead,
    Poll,
    Query,
    Running,
    StepState,
    Update,
)
from fabric.wire.server import Server
from fabric.wire.server_connections import Connections
from fabric.wire.viewing import Viewing

KEY = "a" * 64


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        yield Farm(tmp_path, stack)


def is_served(honest: Any) -> None:
    assert isinstance(honest.ask(Query(PROTOCOL, uuid.uuid4().hex, "workers")), Answer)


def log_at(farm: Farm) -> None:
    """Send the broker a worker's log of 4 MiB."""
    worker = farm.peer(farm.key("worker", "w"))
    token = farm.token(KEY, 1, "w")
    worker.say(report("w", running=(Running(KEY, 1, "build", 0, token),)))
    worker.hear()
    for n in range(4):
        worker.say(LogPiece(KEY, 1, n * bounds.LOG_RANGE, os.urandom(bounds.LOG_RANGE)))


@pytest.mark.bound("UNREAD")
@pytest.mark.bound("CONNECTIONS")
def test_peer_that_does_not_read_fills_no_memory(farm: Farm) -> None:
    honest = farm.peer(farm.key("initiator", "honest"))
    is_served(honest)
    log_at(farm)
    curve = farm.key("initiator", "greedy")
    context = zmq.Context()
    try:
        crowd = [sockets.dealer(context, curve) for _ in range(200)]
        for each in crowd:
            each.setsockopt(zmq.RCVHWM, 1)
            each.setsockopt(zmq.RCVBUF, 4096)
            sockets.connect(each, farm.at.jobs)
        asked = farm_codec().encode(LogRead(KEY, 1, 0, bounds.LOG_RANGE))
        for _ in range(40):
            for each in crowd:
                sockets.send(each, asked)
            is_served(honest)
        until(lambda: "it has 129 connections, and there may be 128" in farm.said)
        is_served(honest)
        # ZeroMQ holds one more message of each connection
        assert resident(farm.child.pid) < bounds.UNREAD + (128 + 200) * bounds.MIB
    finally:
        context.destroy(linger=0)
    terminal = farm.peer(curve)

    def answered() -> bool:
        """Repeat the query, as all programs do, since it may have been dropped."""
        terminal.say(Query(PROTOCOL, "q", "workers"))
        return bool(terminal.jobs.poll(1000))

    until(answered)
    assert farm.child.poll() is None


def farm_codec() -> sockets.Codec[Answer]:
    return sockets.Codec(Answer)


def used(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.bound("WORKER_CONNECTIONS")
def test_worker_with_too_many_connections_loses_the_silent_one(farm: Farm) -> None:
    curve = farm.key("worker", "m")
    sequence = itertools.count(1)
    crowd, ends = [], []
    for _ in range(bounds.WORKER_CONNECTIONS + 1):
        crowd.append(farm.peer(curve))
        ends.append(crowd[-1].jobs.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        for each in {crowd[0], crowd[-1]}:  # the first is not silent
            each.ask(report("m", sequence=next(sequence)))
    assert ends[1].poll(60_000), "it is not cut"
    assert [n for n, end in enumerate(ends) if end.poll(0)] == [1]
    for each, end in zip(crowd, ends, strict=True):
        each.jobs.disable_monitor()
        end.close()
    assert "it has 9 connections, and there may be 8" in farm.said


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A server with keys, whose clock moves by 15 ms at each reading."""
    keys.make("broker", "broker", tmp_path)
    wake = os.eventfd(0)
    hall = SimpleNamespace(keys=tmp_path, at=sockets.over_tcp(HOST, PORT + 10))
    hall.context = zmq.Context()
    hall.peers = []

    def peer(name: str) -> sockets.Socket:
        public = keys.make("initiator", name, tmp_path / name)
        AuthorizedKeys(tmp_path).admit(public)
        (tmp_path / name / "broker.key").write_bytes((tmp_path / "broker.key").read_bytes())
        peer = sockets.dealer(hall.context, keys.of_peer(tmp_path / name, "initiator")[1])
        sockets.connect(peer, hall.at.jobs)
        hall.peers.append(peer)
        return peer

    hall.peer = peer
    hall.server = Server(
        hall.at,
        print,
        wake=wake,
        curve=keys.of_broker(tmp_path),
        admitted=AuthorizedKeys(tmp_path),
        clock=itertools.count(0, 15_000_000).__next__,
    )
    yield hall
    hall.context.destroy(linger=0)
    hall.server.close()
    os.close(wake)


@pytest.mark.bound("TURN")
def test_server_receives_from_all_peers_in_turns(hall: SimpleNamespace) -> None:
    greedy, modest = hall.peer("greedy"), hall.peer("modest")
    codec = farm_codec()
    for n in range(50):
        sockets.send(greedy, codec.encode(Poll(f"greedy {n}", 0)))
    sockets.send(modest, codec.encode(Poll("modest", 0)))
    turns: list[list[str]] = []

    def heard() -> bool:
        hall.server.wait(10)
        hall.server.refresh_keys(time.monotonic())
        hall.server.authenticate(time.monotonic())
        turns.append([each.sender for each in hall.server.receive()])
        return any("modest" in turn for turn in turns) and any("greedy" in turn for turn in turns)

    until(heard)
    assert max(turn.count("greedy") for turn in turns) <= 2


@pytest.mark.bound("VIEWING")
@pytest.mark.bound("VIEWING_SAVED")
def test_viewer_uses_its_share_of_time_and_no_more() -> None:
    viewing = Viewing()
    now = answered = spent = 0
    second, took = 1_000_000_000, 2_000_000
    while now < 100 * second:
        if viewing.may("web", now):
            viewing.spend("web", took)
            answered += 1
            spent += took
        now += 1_000_000
    assert "web" in viewing
    assert "other" not in viewing
    most = 100 * bounds.VIEWING + bounds.VIEWING_SAVED
    assert 0.95 * most < spent / 1_000_000 <= most + 2
    assert viewing.may("web", now + 3600 * second)
    viewing.spend("web", bounds.VIEWING_SAVED * 1_000_000)  # no more is saved in an hour
    assert not viewing.may("web", now + 3600 * second)
    # one long answer is paid for by silence
    assert viewing.may("other", now)
    viewing.spend("other", 10 * bounds.VIEWING_SAVED * 1_000_000)
    pause = 9 * bounds.VIEWING_SAVED * second // bounds.VIEWING
    assert not viewing.may("other", now + pause - second)
    assert viewing.may("other", now + pause + second)


@pytest.mark.bound("VIEWING")
def test_viewer_that_asks_without_pause_is_answered_seldom(farm: Farm) -> None:
    """Messages and answers count; other peers are served all the while."""
    honest = farm.peer(farm.key("initiator", "honest"))
    is_served(honest)
    greedy = farm.peer(farm.key("viewer", "greedy"))
    codec = farm_codec()
    question = codec.encode(Query(PROTOCOL, "q", "workers"))
    waits, sent, heard = [], 0, 0
    began = time.monotonic()
    before = used(farm.child.pid)
    while time.monotonic() < began + 3.0:
        for _ in range(100):
            sent += sockets.send(greedy.jobs, question)
        heard += len(list(sockets.receive(greedy.jobs, 1000)))
        asked = time.monotonic()
        is_served(honest)
        waits.append(time.monotonic() - asked)
    lasted = time.monotonic() - began
    assert heard < 0.8 * sent, (heard, sent)
    assert sorted(waits)[len(waits) // 2] < 0.1
    assert farm.child.poll() is None
    print(f"{sent=} {heard=} {lasted=:.1f} {used(farm.child.pid) - before=:.2f}")


@pytest.mark.bound("STEPS_A_TURN")
def test_outbox_sends_to_all_peers_in_turns() -> None:
    told: list[bytes] = []
    journal: Any = SimpleNamespace(error="", appended=0, durable=0)
    steps = (StepState(KEY, "done"),) * (bounds.STEPS_A_TURN // 4)
    core: Any = SimpleNamespace(update=lambda request, *_: Update(request, 1, "building", steps))

    def send(peer: bytes, _: object) -> bool:
        told.append(peer)
        return True

    outbox = ReplyOutbox(journal, send)
    for n in range(20):
        outbox.subscriptions.subscribe(f"r{n}", b"greedy", 0.0, owner="greedy")
    outbox.subscriptions.subscribe("r", b"modest", 0.0, owner="modest")
    outbox.send_due(core, 0.0)
    assert told.count(b"modest") == 1
    assert told.count(b"greedy") * (UPDATE_COST + len(steps)) < 1.3 * bounds.STEPS_A_TURN
    for turn in range(1, 10):
        outbox.send_due(core, float(turn))
    assert told.count(b"greedy") == 20


@pytest.mark.bound("PENDING_ENTRIES")
@pytest.mark.bound("HELD_REPLIES")
def test_outbox_bounds_replies_that_wait_for_the_disk() -> None:
    journal: Any = SimpleNamespace(error="", appended=0, durable=0)
    core: Any = SimpleNamespace(answer=lambda query, _: Answer(query.id), requests={})
    outbox = ReplyOutbox(journal, lambda *_: True)
    order = BuildOrder(PROTOCOL, "r", "t", "refs/builds/m/r", "c" * 40, "s.morph")
    question = Query(PROTOCOL, "q", "workers")
    taken = answered = 0
    for _ in range(2 * bounds.HELD_REPLIES):
        if not outbox.rejects(b"m", order, core):
            taken += 1
            journal.appended += 1
        if not outbox.rejects(b"m", question, core):
            answered += 1
            outbox.answer(b"m", question, core, 0.0)
    assert (taken, answered) == (bounds.PENDING_ENTRIES + 1, bounds.HELD_REPLIES + 1)
    journal.durable = journal.appended
    outbox.send_due(core, 0.0)
    assert not outbox.rejects(b"m", order, core)
    assert not outbox.rejects(b"m", question, core)


@pytest.mark.bound("CHANGES")
def test_connection_with_too_many_subscription_changes_is_closed() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as logs:
        connections = Connections(logs)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connections.received(ours.fileno(), "m", 8)

            def change(times: int) -> list[str]:
                said = (b"\1" + b"a" * 64, b"\0" + b"a" * 64)
                return [
                    connections.subscribed(ours.fileno(), memoryview(said[n % 2]))
                    for n in range(times)
                ]

            assert not any(change(bounds.CHANGES))
            connections.all_received()
            *before, last = change(bounds.CHANGES + 1)
            assert not any(before)
            assert last == "it has changed more than 40,000 subscriptions without a pause"
            assert theirs.recv(1) == b""
        logs.disable_monitor()
        context.destroy(linger=0)


def test_authenticator_blocks_log_connections_for_a_while() -> None:
    one = Certificate("m", "initiator", "x" * 40)
    admitted: Any = SimpleNamespace(get=lambda _: one, refresh=lambda: False)
    with zmq.Context() as context, context.socket(zmq.REQ) as asks:
        authenticator = Authenticator(context, admitted)
        asks.connect("inproc://zeromq.zap.01")

        def answer(domain: bytes, now: float) -> bytes:
            asks.send_multipart([b"1.0", b"1", domain, b"", b"", b"CURVE", b"k" * 32])
            authenticator.serve(now)
            return asks.recv_multipart()[2]

        assert answer(b"logs", 0.0) == b"200"
        authenticator.block("m", 10.0)
        assert answer(b"logs", 1.0) == b"300"  # for now
        assert answer(b"jobs", 1.0) == b"200"
        assert answer(b"logs", 10.0) == b"200"
        context.destroy(linger=0)
