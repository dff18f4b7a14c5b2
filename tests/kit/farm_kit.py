"""A farm over TCP: the real broker as a daemon, keys, and peers that use them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import zmq
from wire_kit import FakeWorker

from fabric.scheduling.tokens import Tokens
from fabric.wire import keys, sockets
from fabric.wire.keys import AuthorizedKeys, Role
from fabric.wire.messages import PROTOCOL, Report, ToInitiator, ToWorker
from fabric.wire.sockets import Curve

#: An address of this machine that no other test process uses.
HOST = f"127.{os.getpid() >> 16 & 255}.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
PORT = 7411


class Farm:
    """The real broker as a daemon, keys, and peers that use them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.at = sockets.over_tcp(HOST, PORT)
        self.keys = directory / "keys"
        keys.make("broker", "broker", self.keys)
        self.config = directory / "broker.toml"
        self.config.write_text(
            f'listen = "{HOST}"\nport = {PORT}\nkeys = "{self.keys}"\n'
            f'state = "{directory}/state"\nartifacts = "{directory}/store"\nmetrics = ""\n'
        )
        #: changes the command line of the broker
        self.inside: Callable[[list[str]], list[str]] = list
        self._stack = stack
        self.start()
        stack.callback(self.kill)

    def start(self) -> None:
        with (self.directory / "broker.err").open("ab") as errors:
            self.child = subprocess.Popen(
                self.inside([sys.executable, "-m", "fabric.broker", "--config", str(self.config)]),
                stdin=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    @property
    def said(self) -> str:
        return (self.directory / "broker.err").read_text()

    def key(self, role: Role, name: str, *, admit: bool = True) -> Curve:
        """A new key, admitted."""
        directory = self.directory / name
        public = keys.make(role, name, directory)
        (directory / "broker.key").write_bytes((self.keys / "broker.key").read_bytes())
        if admit:
            AuthorizedKeys(self.keys).admit(public)
        return keys.of_peer(directory, role)[1]

    def token(self, key: str, fence: int, worker: str) -> int:
        """The token that a former run of the broker would have given to an attempt."""
        with sqlite3.connect(self.directory / "state" / "journal.sqlite") as journal:
            [secret] = journal.execute("SELECT secret FROM secrets").fetchone()
        journal.close()
        return Tokens(secret)(key, fence, worker)

    def worker(self, name: str, *args: Any, **options: Any) -> FakeWorker:
        curve = options.pop("curve", None) or self.key("worker", name)
        worker = FakeWorker(self.directory, name, *args, at=self.at, curve=curve, **options)
        self._stack.callback(worker.stop)
        return worker

    def socket(self, kind: int, address: str, curve: Curve) -> zmq.Socket[bytes]:
        """A socket of any type, for invalid use."""
        context = zmq.Context()
        self._stack.callback(context.destroy, linger=0)
        socket = context.socket(kind)
        self._stack.callback(socket.close)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
        sockets.connect(socket, address)
        return socket

    def peer(self, curve: Curve) -> Peer:
        peer = Peer(self, curve)
        self._stack.callback(peer.close)
        return peer


class Peer:
    """A peer with a key that sends any message."""

    def __init__(self, farm: Farm, curve: Curve) -> None:
        self._context = zmq.Context()
        self.jobs = sockets.dealer(self._context, curve)
        sockets.connect(self.jobs, farm.at.jobs)
        self.stream = sockets.publisher(self._context, curve)
        sockets.connect(self.stream, farm.at.logs_in)
        self.codec: sockets.Codec[ToWorker | ToInitiator] = sockets.Codec(ToWorker | ToInitiator)

    def say(self, message: msgspec.Struct) -> None:
        sockets.send(self.jobs, self.codec.encode(message))  # fails once the key was rejected

    def hear(self) -> object:
        assert self.jobs.poll(60_000), "no answer"
        return self.codec.decode(self.jobs.recv())

    def ask(
        self, message: msgspec.Struct, wanted: Callable[[object], bool] = lambda _: True
    ) -> object:
        """The first wanted answer to a message, which is repeated: a busy broker may drop it."""
        for _ in range(3):
            assert self.jobs.poll(60_000, zmq.POLLOUT)
            self.say(message)
            again = time.monotonic() + 20.0
            while self.jobs.poll(max(0, int(1000 * (again - time.monotonic())))):
                if wanted(answer := self.hear()):
                    return answer
        raise AssertionError("no answer")

    def close(self) -> None:
        self._context.destroy(linger=0)


def report(name: str, sequence: int = 1, **more: Any) -> Report:
    return Report(PROTOCOL, name, "x86_64", 1, sequence, instance=name, **more)
