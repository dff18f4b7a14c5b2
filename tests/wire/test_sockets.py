"""Sockets with our options."""

import subprocess
import sys
import time
from pathlib import Path

import zmq
from waiting import until

from fabric.wire import sockets
from fabric.wire.sockets import Curve

#: A router that does not read while a peer sends much and ends; a bug of ZeroMQ aborts it.
BUSY = """
import sys, time, zmq
from fabric.wire import sockets
from fabric.wire.sockets import Curve
public, secret = sys.argv[1].encode(), sys.argv[2].encode()
context = sockets.new_context()
router = sockets.router(context, Curve(public, secret))
print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
sys.stdin.readline()
time.sleep(5)
while router.poll(500):
    router.recv_multipart()
"""


def test_socket_survives_a_peer_that_waits_and_is_gone() -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    own_public, own_secret = zmq.curve_keypair()
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY, public, secret], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with busy:
        assert busy.stdout
        context = sockets.new_context()
        try:
            peer = sockets.dealer(context, Curve(own_public, own_secret, public.encode()))
            peer.setsockopt(zmq.SNDHWM, 1000)
            sockets.connect(peer, f"tcp://127.0.0.1:{int(busy.stdout.readline())}")
            for _ in range(500):
                peer.send(b"x" * 30)
            time.sleep(1)  # until they are sent
        finally:
            context.destroy(linger=0)
        busy.communicate(b"\n", timeout=60)
    assert busy.returncode == 0


def test_socket_subscriptions_all_arrive(tmp_path: Path) -> None:
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
