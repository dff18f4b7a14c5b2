"""More than a million malformed frames, at every socket, while honest peers are served."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import zmq
from farm_kit import HOST, PORT, Farm, report
from fuzz_kit import GROWTH, KEY, encode, malformed, pieces
from waiting import until
from wire_kit import resident
from zmtp_kit import RawSocket

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    Assignment,
    Attempt,
    Desired,
    Leave,
    LogPiece,
    LogRead,
    LogWanted,
    Outcome,
    Poll,
    Query,
    Rejected,
    Report,
    Running,
)

if TYPE_CHECKING:
    from fabric_kit import Fabric

pytestmark = pytest.mark.long

#: Frames at the broker's socket for jobs, with each of two keys; at its socket for logs; at its
#: socket for subscriptions; and at a worker.
JOBS, LOGS, TOPICS, WORKER = 350_000, 300_000, 50_000, 100_000
#: Messages of several frames at the broker's sockets for jobs and for logs, each.
SEVERAL = 20_000
#: Frames between two questions of honest peers.
ROUND = 10_000


def valid() -> list[bytes]:
    """One message of each type."""
    outcome = Outcome(KEY, 3, "failed", "no", "build", "make", 1.0, 5, "cd" * 32, (KEY,))
    said = (
        report("w1", 9, running=(Running(KEY, 4, "build", 7),), finished=(outcome,)),
        LogPiece(KEY, 1, 0, b"a line\n" * 30, 210, "cd" * 32),
        Poll("r" * 32, 7),
        Leave("r" * 32),
        LogRead(KEY, 1, 0, 1000),
        Query(PROTOCOL, "q", "why", "zlib"),
        Desired(1, 3, (Assignment(KEY, 1, msgspec.Raw(b"\x80")),), (Attempt(KEY, 2),)),
        LogWanted(KEY, 1, 0, 100),
        Rejected("w1", "bad-request", "no"),
    )
    return [encode(each) for each in said]


def push(socket: zmq.Socket[bytes], frame: bytes) -> None:
    """Send a frame as soon as there is room."""
    assert socket.poll(60_000, zmq.POLLOUT), "nobody takes it any more"
    socket.send(frame)


def discard(socket: zmq.Socket[bytes]) -> None:
    for _ in sockets.receive(socket, 10_000):
        pass


def drain(socket: zmq.Socket[bytes]) -> None:
    """Discard answers until there is room to send.

    The kernel closes a connection whose peer reads nothing for `sockets.HALF_DEAD`.  ZeroMQ
    connects again only after that peer has read everything that it had received.
    """
    end = time.monotonic() + 60.0
    while not socket.poll(10, zmq.POLLOUT):
        assert time.monotonic() < end, "nobody takes it any more"
        discard(socket)


class Honest:
    """A worker and an initiator that must be served meanwhile."""

    def __init__(self, farm: Farm) -> None:
        self.worker = farm.peer(farm.key("worker", "honest-worker"))
        self.initiator = farm.peer(farm.key("initiator", "honest-initiator"))
        self.slowest = 0.0
        self._sequence = 0

    def are_served(self) -> None:
        began = time.monotonic()
        self._sequence += 1
        assert isinstance(self.worker.ask(report("w", self._sequence)), Desired)
        assert isinstance(self.initiator.ask(Poll("nobody", 0)), Rejected)
        self.slowest = max(self.slowest, time.monotonic() - began)


@pytest.fixture
def honest(farm: Farm) -> Iterator[Honest]:
    someone = Honest(farm)
    someone.are_served()
    before = resident(farm.child.pid)
    yield someone
    someone.are_served()
    assert farm.child.poll() is None
    assert resident(farm.child.pid) - before < GROWTH
    assert "Traceback" not in farm.said
    assert len(farm.said) < 10_000, "rubbish is noted once for each sender"


@pytest.mark.slow
@pytest.mark.parametrize("role", ["worker", "initiator"])
def test_fuzz_socket_for_jobs(farm: Farm, honest: Honest, role: str) -> None:
    curve = farm.key("worker" if role == "worker" else "initiator", "fuzzer")
    fuzzer = farm.peer(curve)
    rng = random.Random(role)
    frames = malformed(rng, valid())
    for n in range(JOBS):
        if not fuzzer.jobs.poll(1000, zmq.POLLOUT):
            drain(fuzzer.jobs)
        fuzzer.jobs.send(next(frames))
        if n % ROUND == 0:
            discard(fuzzer.jobs)
            honest.are_served()


@pytest.mark.slow
def test_fuzz_sockets_for_logs(farm: Farm, honest: Honest) -> None:
    stream = farm.socket(zmq.XPUB, farm.at.logs_in, farm.key("worker", "fuzzer"))
    stream.setsockopt(zmq.XPUB_NODROP, 1)
    assert stream.recv() == b"\x01", "the broker wants all logs"
    rng = random.Random(3)
    frames = malformed(rng, [*valid(), *pieces()])
    for n in range(LOGS):
        push(stream, next(frames))
        if n % ROUND == 0:
            honest.are_served()
    reader = farm.socket(zmq.XSUB, farm.at.logs, farm.key("initiator", "reader"))
    for n in range(TOPICS):
        kind = rng.choice((b"\x01", b"\x00", b"\x02", b""))
        push(reader, kind + rng.randbytes(rng.randrange(40)))
        if n % ROUND == 0:
            honest.are_served()


@pytest.mark.slow
def test_fuzz_messages_that_are_too_large(farm: Farm, honest: Honest) -> None:
    fuzzer = farm.peer(farm.key("worker", "fuzzer"))
    for size in (bounds.REMOTE_FRAME - 1, bounds.REMOTE_FRAME + 1, 2**26):
        for _ in range(3):
            with contextlib.suppress(zmq.Again):
                fuzzer.jobs.send(b"\x91" * size, zmq.NOBLOCK)
                fuzzer.stream.send(b"x" * size, zmq.NOBLOCK)
            honest.are_served()


@pytest.mark.slow
def test_fuzz_messages_of_several_frames(fabric: Fabric) -> None:
    """Such a message gets one warning, and has no effect on others."""
    fabric.worker()
    assert fabric.initiator("before:").follow() == "done"
    before = resident(fabric.broker.child.pid)
    rng = random.Random(6)
    frames = malformed(rng, [*valid(), *pieces()])
    for place, kind in (("jobs", b"DEALER"), ("logs-in", b"PUB")):
        fuzzer = RawSocket(fabric.directory / place, kind)
        for n in range(SEVERAL):
            some = 1000 if n % 5000 == 0 else rng.randrange(2, 20)
            fuzzer.send(*itertools.islice(frames, some))
        fuzzer.send(*itertools.islice(frames, 1000), end=False)
        fuzzer.close()
    assert fabric.initiator("after:").follow() == "done"
    assert fabric.broker.child.poll() is None
    assert resident(fabric.broker.child.pid) - before < GROWTH
    assert "Traceback" not in fabric.broker.said
    assert re.search("a message was dropped: it has [34] frames", fabric.broker.said)
    assert len(fabric.broker.said) < 10_000


@pytest.mark.slow
def test_fuzz_ports_without_a_key(honest: Honest) -> None:
    """Invalid greetings of ZeroMQ's protocol, and random bytes."""
    rng = random.Random(4)
    null = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    curve = null.replace(b"NULL\0", b"CURVE")
    for n in range(600):
        greeting = rng.choice((b"", null, curve, rng.randbytes(64), null[:10]))
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, PORT + n % 3), timeout=60.0) as connection,
        ):
            connection.sendall(greeting)
            for _ in range(rng.randrange(4)):
                size = rng.randrange(2**32)
                header = rng.choice(
                    (b"\x04" + bytes([size % 256]), b"\x06" + struct.pack(">Q", size))
                )
                connection.sendall(header + rng.randbytes(rng.randrange(1000)))
        if n % 100 == 0:
            honest.are_served()


@pytest.mark.slow
def test_fuzz_worker(directory: Path) -> None:
    """Damaged messages from a broker."""
    context = zmq.Context()
    broker = sockets.router(context)
    sockets.bind(broker, sockets.ipc(directory, "jobs"))
    environ = os.environ | {
        "FABRIC_CACHE": str(directory / "cache"),
        "FABRIC_CONFIG": str(directory / "config.toml"),
    }
    (directory / "config.toml").touch()
    child = subprocess.Popen(
        [sys.executable, "-m", "fabric.worker", f"--directory={directory}", "--name=w1"],
        stderr=subprocess.PIPE, env=environ,
    )  # fmt: skip
    try:
        peer = heard(broker, lambda _: True)
        before = resident(child.pid)
        frames = malformed(random.Random(5), valid())
        for _ in range(WORKER):
            assert broker.poll(60_000, zmq.POLLOUT)
            while not sockets.send(broker, next(frames), to=peer):
                assert child.poll() is None
                time.sleep(0.001)
            discard(broker)
        # It still handles messages; an unknown attempt to keep has no effect.
        until(lambda: sockets.send(broker, encode(Desired(2**62, 2**63 - 1)), to=peer))
        heard(broker, lambda report: report.epoch == 2**63 - 1)
        assert resident(child.pid) - before < GROWTH
    finally:
        child.terminate()
        _, errors = child.communicate(timeout=60)
        context.destroy(linger=0)
    assert child.returncode == 0
    assert b"Traceback" not in errors


def heard(broker: zmq.Socket[bytes], wanted: Callable[[Report], bool]) -> bytes:
    """The sender of the first such report."""
    codec: sockets.Codec[Report] = sockets.Codec(Report)
    deadline = time.monotonic() + 60.0
    while True:
        assert time.monotonic() < deadline, "the worker does not say that"
        assert broker.poll(60_000), "the worker is silent"
        peer, frame = broker.recv_multipart()
        if wanted(codec.decode(frame)):
            return peer
