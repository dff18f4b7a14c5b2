"""Queries and commands to a controller, with a scripted broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from fabric.client.controller import Controller
from fabric.errors import MachineFault
from fabric.wire import sockets
from fabric.wire.connection import Connection
from fabric.wire.messages import Answer, Query


class Oracle:
    """A broker's socket in a thread: ``said`` returns the answers to each question."""

    def __init__(self, directory: Path, said: Callable[[Query], list[bytes]]) -> None:
        self.times: list[float] = []
        self._said = said
        self._context = zmq.Context()
        self._socket = sockets.router(self._context)
        sockets.bind(self._socket, sockets.ipc(directory, "jobs"))
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        codec: sockets.Codec[Query] = sockets.Codec(Query)
        while not self._stop:
            if self._socket.poll(10):
                peer, frame = self._socket.recv_multipart()
                self.times.append(time.monotonic())
                for answer in self._said(codec.decode(frame)):
                    sockets.send(self._socket, answer, to=peer)

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._context.destroy(linger=0)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Connection]:
    line = Connection(sockets.in_directory(tmp_path), "follow")
    yield line
    line.close()


def test_controller_ignores_invalid_answers(tmp_path: Path, line: Connection) -> None:
    def said(query: Query) -> list[bytes]:
        answer = msgspec.msgpack.encode(Answer(query.id, lines=("so it is",)))
        return [b"", b"\xc1", answer[:-3], msgspec.msgpack.encode({"t": "New"}), answer]

    oracle = Oracle(tmp_path, said)
    assert Controller(line).query("why", "zlib").lines == ("so it is",)
    oracle.close()


def test_controller_question_is_repeated_with_growing_delays(
    tmp_path: Path, line: Connection
) -> None:
    oracle = Oracle(tmp_path, lambda _: [])
    with pytest.raises(
        MachineFault, match=r"^no answer: ipc://.* does not answer; is fabric-broker"
    ):
        Controller(line).query("workers")
    assert len(oracle.times) <= 4
    oracle.close()
