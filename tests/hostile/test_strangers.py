"""Connections without a key, and the limit of descriptors."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from farm_kit import HOST, PORT, Farm

from fabric import bounds
from fabric.wire.messages import PROTOCOL, Answer, BuildOrder, Query, Update

#: The first bytes of a ZeroMQ connection.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"


def silent(number: int) -> list[socket.socket]:
    found = []
    for n in range(number):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((HOST, PORT + n % 3))
        found.append(one)
    return found


def limited(descriptors: int) -> Any:
    return lambda command: ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        yield Farm(tmp_path, stack)


@pytest.mark.bound("DESCRIPTORS_KEPT")
@pytest.mark.parametrize("said", [b"", GREETING[:1], GREETING])
def test_connections_without_a_key_leave_descriptors_to_the_broker(farm: Farm, said: bytes) -> None:
    farm.kill()
    farm.inside = limited(256)
    farm.start()
    honest = farm.peer(farm.key("initiator", "honest"))
    assert isinstance(honest.ask(Query(PROTOCOL, "q", "workers")), Answer)
    for _ in range(2):
        crowd = silent(600)
        for stranger in crowd:
            with contextlib.suppress(OSError):
                stranger.send(said)
        newcomer = farm.peer(farm.key("initiator", uuid.uuid4().hex))
        assert isinstance(newcomer.ask(Query(PROTOCOL, "q", "workers")), Answer)
        order = BuildOrder(PROTOCOL, uuid.uuid4().hex, "t", "refs/builds/m/r", "c" * 40, "s.morph")
        update = newcomer.ask(order)
        assert isinstance(update, Update)
        assert "Too many open files" not in update.message
        newcomer.close()
        for stranger in crowd:
            stranger.close()
    assert isinstance(honest.ask(Query(PROTOCOL, "q", "workers")), Answer)
    assert farm.child.poll() is None
    assert "connections that had not authenticated" in farm.said


def test_connections_that_come_and_go_delay_no_peer(farm: Farm) -> None:
    honest = farm.peer(farm.key("initiator", "honest"))
    assert isinstance(honest.ask(Query(PROTOCOL, "q1", "workers")), Answer)
    for n in range(9000):
        with socket.socket() as stranger:
            stranger.settimeout(10)
            stranger.connect((HOST, PORT + n % 3))
    assert isinstance(honest.ask(Query(PROTOCOL, "q2", "workers")), Answer)
    assert farm.child.poll() is None


@pytest.mark.bound("DESCRIPTORS")
@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [(256, 1024, 1024), (256, 256, 256), (1024, 100_000, bounds.DESCRIPTORS)],
)
def test_descriptor_limit_is_raised_to_its_bound(soft: int, hard: int, then: int) -> None:
    if hard > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        hard = then = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    program = "from fabric.host.process import more_descriptors; print(more_descriptors())"
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", program]
    assert int(subprocess.run(command, check=True, capture_output=True).stdout) == then
