"""A turn of the worker's loop, which may see only the end of an attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from fabric import config
from fabric.wire import sockets
from fabric.wire.messages import STORING, Assignment, Desired, Outcome, Report
from fabric.worker import Worker

FIRST, SECOND = "a" * 64, "b" * 64
JOB = msgspec.Raw(msgspec.msgpack.encode("job"))


class Broker:
    """A broker's socket for one worker."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self._socket = sockets.router(context)
        sockets.bind(self._socket, sockets.ipc(folder, "jobs"))
        self._reports: sockets.Codec[Report] = sockets.Codec(Report)
        self._peer = b""

    def report(self) -> Report:
        """The worker's next report."""
        assert self._socket.poll(60_000), "the worker is silent"
        self._peer, frame = self._socket.recv_multipart()
        return self._reports.decode(frame)

    def send(self, desired: Desired) -> None:
        codec: sockets.Codec[Desired] = sockets.Codec(Desired)
        assert sockets.send(self._socket, codec.encode(desired), to=self._peer)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    context = zmq.Context()
    yield Broker(context, tmp_path)
    context.destroy(linger=0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """With one slot, and no thread that builds."""
    settings = config.embedded_worker(config.load_settings(), "w1", 1)
    worker = Worker("w1", settings, "tools", sockets.in_directory(tmp_path))
    yield worker
    worker.close()


def hear(worker: Worker) -> None:
    """Wait until the worker has what the broker wishes."""
    deadline = time.monotonic() + 60.0
    while worker._waiting.empty():
        assert time.monotonic() < deadline, "it does not hear the broker"
        worker._connection.wait(1.0)
        worker._hear()


def test_attempt_that_was_stored_and_ended_within_a_turn(broker: Broker, worker: Worker) -> None:
    """What waits for its slot starts once, and that it was stored is reported before its end."""
    worker._do(worker._agent.tick(0.0))
    broker.report()
    broker.send(Desired(1, 1, start=(Assignment(FIRST, 1, JOB), Assignment(SECOND, 2, JOB))))
    hear(worker)
    first = worker._waiting.get_nowait()
    assert worker._waiting.empty(), "there is one slot"
    first.set_phase(STORING)
    worker._ended.put(Outcome(FIRST, 1, "done"))
    worker._collect()
    worker._follow()
    assert worker._waiting.get_nowait().key == SECOND
    assert worker._waiting.empty()
    stored, ended = broker.report(), broker.report()
    assert (stored.running[0].key, stored.running[0].phase) == (FIRST, STORING)
    assert [(one.key, one.result) for one in ended.finished] == [(FIRST, "done")]
    assert [one.key for one in ended.running] == [SECOND]
