"""Broker, workers and initiators over TCP, where keys determine names and roles."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import get_args

import zmq
from farm_kit import HOST, PORT, Farm, Peer, report
from waiting import until

from fabric.wire import sockets
from fabric.wire.connection import Connection
from fabric.wire.keys import AuthorizedKeys
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    Desired,
    Leave,
    LogPiece,
    LogRead,
    Poll,
    Published,
    Query,
    QueryKind,
    Rejected,
    Running,
    ToWorker,
)
from fabric.wire.sockets import Curve

KEY = "a" * 64


def order() -> BuildOrder:
    return BuildOrder(PROTOCOL, "r" * 32, "t", "refs/x", "c" * 40, "s.morph")


def test_server_roles_are_those_of_the_keys(farm: Farm) -> None:
    """A worker cannot submit builds, and an initiator cannot take jobs."""
    worker = farm.peer(farm.key("worker", "w1"))
    for message in (
        order(),
        Poll("r", 0),
        LogRead(KEY, 1, 0, 1),
        Command(PROTOCOL, "1", "drain", "w1"),
    ):
        rejected = worker.ask(message)
        assert isinstance(rejected, Rejected)
        assert rejected.code == "not-allowed"
        assert "w1 is admitted as worker, who may not send a" in rejected.reason
    initiator = farm.peer(farm.key("initiator", "alice"))
    for wrong in (
        report("alice"),
        LogPiece(KEY, 1, 0, b"x"),
        BuildGraph(PROTOCOL, "r", "", (), ()),
    ):
        rejected = initiator.ask(wrong)
        assert isinstance(rejected, Rejected)
        assert rejected.code == "not-allowed"
    poll = initiator.ask(Poll("nobody", 0))
    assert isinstance(poll, Rejected)
    assert poll.code == "unknown-request"


def test_viewer_reads_and_changes_nothing(farm: Farm) -> None:
    curve = farm.key("viewer", "web")
    viewer = farm.peer(curve)
    for wrong in (
        order(),
        Poll("r" * 32, 0),
        Leave("r" * 32),
        Command(PROTOCOL, "1", "cancel", "r"),
        report("web"),
        LogPiece(KEY, 1, 0, b"x"),
        BuildGraph(PROTOCOL, "r", "", (), ()),
    ):
        rejected = viewer.ask(wrong)
        assert isinstance(rejected, Rejected)
        assert rejected.code == "not-allowed"
        kind = type(wrong).__name__
        assert rejected.reason == f"web is admitted as viewer, who may not send a {kind}"
    for what in get_args(QueryKind):
        answer = viewer.ask(Query(PROTOCOL, what, what, "nothing"))
        assert isinstance(answer, Answer)
        assert answer.id == what
    read = viewer.ask(LogRead(KEY, 1, 0, 1))
    assert isinstance(read, Rejected)
    assert read.code == "no-log"
    # it follows logs, and publishes none
    subscriber = Connection(farm.at, "follow", curve=curve, name="web")
    subscriber.subscribe(KEY)
    try:
        worker = farm.peer(farm.key("worker", "w1"))
        token = farm.token(KEY, 1, "w1")
        worker.say(report("w1", running=(Running(KEY, 1, "build", 0, token),)))
        worker.hear()
        viewer.stream.send(Published(KEY, 1, 0, b"forged").frame())
        pieces: list[bytes] = []

        def heard() -> bool:
            worker.stream.send(Published(KEY, 1, 0, b"real").frame())
            subscriber.wait(0.05)
            pieces.extend(bytes(piece.data) for piece in subscriber.pieces(10))
            return bool(pieces)

        until(heard)
    finally:
        subscriber.close()
    assert pieces[0] == b"real"


def test_connection_with_an_unknown_key_says_why(farm: Farm) -> None:
    curve = farm.key("worker", "w1", admit=False)
    connection = Connection(farm.at, "publish", curve=curve, name="w1")
    try:
        turn_until(connection, lambda: "does not admit the key of w1" in connection.error)
        AuthorizedKeys(farm.keys).admit(farm.directory / "w1" / "w1.key")
        turn_until(connection, lambda: connection.error == "")
        AuthorizedKeys(farm.keys).revoke("w1")
        turn_until(connection, lambda: "does not admit the key of w1" in connection.error)
    finally:
        connection.close()


def turn_until(
    connection: Connection, condition: Callable[[], bool], seconds: float = 20.0
) -> None:
    """An idle worker."""
    codec: sockets.Codec[ToWorker] = sockets.Codec(ToWorker)
    sequence = int(time.monotonic() * 1000)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen: {connection.error!r}"
        sequence += 1
        connection.send(codec.encode(report("w1", sequence)))
        connection.wait(0.05)
        for _ in connection.receive(100):
            pass
        connection.maintain(time.monotonic())


def test_connection_to_another_controller_says_so(farm: Farm) -> None:
    curve = farm.key("worker", "w1")
    wrong = Curve(curve.public, curve.secret, zmq.curve_keypair()[0])
    connection = Connection(farm.at, "publish", curve=wrong, name="w1")
    try:
        turn_until(
            connection, lambda: "broker.key is not the key of this controller" in connection.error
        )
    finally:
        connection.close()


def test_connection_waits_for_a_controller(farm: Farm) -> None:
    curve = farm.key("worker", "w1")
    farm.kill()
    connection = Connection(farm.at, "publish", curve=curve, name="w1")
    try:
        turn_until(connection, lambda: "cannot be reached" in connection.error)
        farm.start()
        turn_until(connection, lambda: connection.error == "")
        farm.kill()
        turn_until(connection, lambda: "cannot be reached" in connection.error)
        farm.start()
        turn_until(connection, lambda: connection.error == "")
    finally:
        connection.close()


def test_server_closes_revoked_connections_at_once(farm: Farm) -> None:
    leaving, staying = farm.peer(farm.key("worker", "w1")), farm.peer(farm.key("worker", "w2"))
    leaving.ask(report("w1"))
    staying.ask(report("w2"))
    AuthorizedKeys(farm.keys).revoke("w1")
    time.sleep(0.5)
    leaving.say(report("w1", 2))
    staying.say(report("w2", 2))
    assert isinstance(staying.hear(), Desired)
    assert not leaving.jobs.poll(1000), "it was answered"
    assert "all connections are made anew" in farm.said


def test_server_accepts_a_log_only_from_the_worker_of_its_attempt(farm: Farm) -> None:
    """One of two workers has the attempt, and the other sends pieces of its log."""
    holder, other = farm.peer(farm.key("worker", "w1")), farm.peer(farm.key("worker", "w2"))
    holder.ask(report("w1"))
    running = Running(KEY, 7, token=farm.token(KEY, 7, "w1"))
    holder.ask(report("w1", 2, running=(running,)))
    other.ask(report("w2"))
    reader = farm.peer(farm.key("initiator", "alice"))

    def log() -> bytes:
        piece = reader.ask(LogRead(KEY, 7, 0, 100))
        return piece.data if isinstance(piece, LogPiece) else b""

    def told(peer: Peer, text: bytes) -> None:
        sockets.send(peer.stream, Published(KEY, 7, 0, text).frame())

    for _ in range(10):
        told(other, b"from another")
        other.say(LogPiece(KEY, 7, 0, b"from another"))
        time.sleep(0.02)

    def heard() -> bool:
        told(holder, b"from its own")
        return log() != b""

    until(heard)
    assert log() == b"from its own"


def test_server_ignores_invalid_bytes_at_its_ports(farm: Farm) -> None:
    """Peers without a key, and without ZeroMQ."""
    rubbish = [b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f", os.urandom(100_000)]
    peer = farm.peer(farm.key("worker", "w1"))
    peer.ask(report("w1"))
    opened = []
    for n in range(60):
        connection = socket.create_connection((HOST, PORT + n % 3))
        opened.append(connection)
        with contextlib.suppress(OSError):
            connection.sendall(rubbish[n % len(rubbish)])
    assert isinstance(peer.ask(report("w1", 2)), Desired)
    for connection in opened:
        connection.close()
    assert farm.child.poll() is None
