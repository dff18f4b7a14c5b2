"""Damaged and false messages from a broker to an initiator."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from fuzz_kit import GROWTH, KEY, encode, malformed, pieces
from waiting import until
from wire_kit import resident

from fabric.wire import sockets
from fabric.wire.messages import Answer, LogInfo, LogPiece, Poll, Rejected, StepState, Update

REQUEST = "r" * 32
LOG = "build-step-zlib-misc.log"
#: Rounds, each of so many messages, every tenth of them on the stream.
ROUNDS, ROUND = 50, 2000

FOLLOW = f"""
import sys
from fabric.client.session import Session
from fabric.errors import FabricError
from fabric.client.render import open_screen
from fabric.wire import sockets
from fabric.wire.connection import Connection
line = Connection(sockets.in_directory(sys.argv[1]), "follow")
try:
    Session("{REQUEST}", line, open_screen(False)).follow("")
except FabricError as error:
    sys.exit(str(error))
"""


def said(version: int) -> list[bytes]:
    """One message of each type, of a running request."""
    state = {
        "name": "zlib", "kind": "chunk", "log": LOG, "worker": "w1", "phase": "build",
        "running_for": 1.5, "expected": 2.5, "log_size": 210 * version,
    }  # fmt: skip
    step = StepState(KEY, "running", fence=version, **state)  # type: ignore[arg-type]
    return [
        encode(Update(REQUEST, version, "building", (step,), 3.5, "", "a build", (KEY,))),
        encode(LogPiece(KEY, version, 0, b"a line\n" * 30, 210, "cd" * 32)),
        encode(Rejected(KEY, "no-log", "no")),
        encode(Answer("q", logs=(LogInfo(KEY, 1, "zlib", LOG, "done"),))),
    ]


def evil(version: int) -> list[bytes]:
    """Valid messages with false contents."""
    steps = [
        StepState("cd" * 32, "running", fence=1, log="../build-step-up.log"),
        StepState("cd" * 32, "running", fence=1, log="build-step-\0.log"),
        StepState("not a key", "running", fence=1, log=LOG),
        StepState("cd" * 32, "done", seconds=float("nan")),
        StepState("cd" * 32, "done", seconds=float("inf")),
        StepState("cd" * 32, "running", fence=-1, log_size=-5),
    ]
    return [encode(Update(REQUEST, version, "building", (step,))) for step in steps]


@pytest.mark.slow
def test_initiator_survives_fuzzed_messages(directory: Path) -> None:
    context = zmq.Context()
    broker, stream = sockets.router(context), sockets.republisher(context)
    sockets.bind(broker, sockets.ipc(directory, "jobs"))
    sockets.bind(stream, sockets.ipc(directory, "logs"))
    here = directory / "above/here"
    here.mkdir(parents=True)
    child = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(directory)],
        cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert broker.poll(60_000)
        peer, frame = broker.recv_multipart()
        assert frame == encode(Poll(REQUEST, 0))
        before = resident(child.pid)
        rng = random.Random(7)
        for n in range(1, ROUNDS + 1):
            good = said(n)
            frames, torn = malformed(rng, good), malformed(rng, pieces())
            for frame in [*evil(n), good[0], *(next(frames) for _ in range(ROUND))]:
                while not sockets.send(broker, frame, to=peer):
                    assert child.poll() is None, child.communicate()
                    time.sleep(0.001)
                if rng.random() < 0.1:
                    sockets.send(stream, KEY.encode() + next(torn))
                    sockets.send(stream, next(torn))
            for _ in sockets.receive(broker, 10_000):
                pass
        assert resident(child.pid) - before < GROWTH
        # It still receives messages.
        last = encode(Rejected(REQUEST, "bad-request", "enough of this"))
        until(lambda: sockets.send(broker, last, to=peer))
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.communicate()
        context.destroy(linger=0)
    assert errors == "the broker rejects this build: enough of this\n"
    assert list((directory / "above").iterdir()) == [here], "a log went elsewhere"
