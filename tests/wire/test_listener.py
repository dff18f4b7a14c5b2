"""What a broker takes in at its sockets."""

from __future__ import annotations

import os
from pathlib import Path

import zmq
from waiting import until

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.listener import Listener
from fabric.wire.messages import LogRead


def test_a_peer_that_asks_for_many_ranges_of_logs_has_few_of_them_in_a_turn(
    tmp_path: Path,
) -> None:
    wake = os.eventfd(0)
    context = zmq.Context()
    listener = Listener(sockets.in_directory(tmp_path), print, wake=wake)
    try:
        greedy, modest = sockets.dealer(context), sockets.dealer(context)
        codec: sockets.Codec[LogRead] = sockets.Codec(LogRead)
        for peer in (greedy, modest):
            sockets.connect(peer, sockets.ipc(tmp_path, "jobs"))
        for n in range(3 * bounds.LOGS_READ):
            sockets.send(greedy, codec.encode(LogRead("a" * 64, 1, n, 1)))
        sockets.send(modest, codec.encode(LogRead("b" * 64, 1, 0, 1)))
        turns: list[list[LogRead]] = []

        def heard() -> bool:
            listener.wait(10)
            turns.append([each.message for each in listener.heard()])  # type: ignore[misc]
            return any(each.key == "b" * 64 for turn in turns for each in turn)

        until(heard)
        assert max(len(turn) for turn in turns) <= bounds.LOGS_READ + 1
    finally:
        listener.close()
        context.destroy(linger=0)
        os.close(wake)
