"""The server: receiving from the broker's sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from waiting import until

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.messages import LogRead, StepState, ToInitiator, Update
from fabric.wire.server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    wake = os.eventfd(0)
    server = Server(sockets.in_directory(tmp_path), print, wake=wake)
    yield server
    server.close()
    os.close(wake)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[sockets.Socket]]:
    """Two connected peers."""
    context = zmq.Context()
    peers = [sockets.dealer(context), sockets.dealer(context)]
    for peer in peers:
        sockets.connect(peer, sockets.ipc(tmp_path, "jobs"))
    yield peers
    context.destroy(linger=0)


def test_server_update_about_thousands_of_failures_fits_into_a_frame(
    server: Server, peers: list[sockets.Socket]
) -> None:
    text = "\U0001f980" * bounds.OUTCOME_TEXT
    step = StepState("a" * 64, "failed", name="n" * 255, message=text, failed_command=text)
    update = Update("r1", 1, "failed", (step,) * 5000)
    peer, _ = peers
    codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)
    sockets.send(peer, codec.encode(LogRead("a" * 64, 1, 0, 1)))

    def heard() -> bytes:
        server.wait(10)
        return b"".join(each.peer for each in server.receive())

    assert server.send(until(heard), update)
    assert peer.poll(60_000)
    told = codec.decode(peer.recv())
    assert isinstance(told, Update)
    assert len(told.steps) == 5000
    assert told.steps[0].message.endswith("... (cut: it has 2,000 characters)")
    assert told.steps[0].failed_command == ""


def test_server_bounds_the_log_reads_of_a_peer_in_a_turn(
    server: Server, peers: list[sockets.Socket]
) -> None:
    greedy, modest = peers
    codec: sockets.Codec[LogRead] = sockets.Codec(LogRead)
    for n in range(3 * bounds.LOGS_READ):
        sockets.send(greedy, codec.encode(LogRead("a" * 64, 1, n, 1)))
    sockets.send(modest, codec.encode(LogRead("b" * 64, 1, 0, 1)))
    turns: list[list[LogRead]] = []

    def heard() -> bool:
        server.wait(10)
        turns.append([each.message for each in server.receive()])  # type: ignore[misc]
        return any(each.key == "b" * 64 for turn in turns for each in turn)

    until(heard)
    assert max(len(turn) for turn in turns) <= bounds.LOGS_READ + 1
