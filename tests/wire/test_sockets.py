"""Sockets as they are set up here."""

from pathlib import Path

import zmq
from waiting import until

from fabric.wire import sockets


def test_many_subscriptions_at_once_all_arrive(tmp_path: Path) -> None:
    before, later = ([f"{n:064x}" for n in range(first, first + 1000)] for first in (0, 1000))
    context = sockets.new_context()
    try:
        address = sockets.ipc(tmp_path, "logs")
        broker = sockets.republisher(context)
        sockets.bind(broker, address)
        follower = sockets.subscriber(context, *before)
        sockets.connect(follower, address)
        come: set[bytes] = set()

        def have(count: int) -> bool:
            come.update(frames[0].bytes for frames in sockets.receive(broker, 10_000))
            return len(come) == count

        until(lambda: have(1000))
        for topic in later:
            follower.setsockopt(zmq.SUBSCRIBE, topic.encode())
        until(lambda: have(2000))
        assert come == {b"\1" + topic.encode() for topic in before + later}
    finally:
        context.destroy(linger=0)
