"""Real sockets for tests: a broker process, and workers and initiators in threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from fabric import bounds
from fabric.building import agent as worker_side
from fabric.building.agent import WorkerAgent
from fabric.client import request_logs
from fabric.client.request import Action, Over, RequestMirror
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.store import Store
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    BuildGraph,
    Desired,
    LogPiece,
    LogWanted,
    Outcome,
    Published,
    Rejected,
    StepSpec,
    ToInitiator,
    Update,
)
from fabric.wire.sockets import Addresses, Curve

ARCH = "x86_64"


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def steps_of(text: str) -> tuple[StepSpec, ...]:
    """Steps from a text, one a line: its name, and the names that it needs."""
    steps = []
    for line in text.split("\n"):
        name, _, depends = line.strip().partition(":")
        if name:
            job = msgspec.Raw(msgspec.msgpack.encode(name))
            needs = tuple(map(key_of, depends.split()))
            steps.append(StepSpec(key_of(name), name, "chunk", ARCH, job, depends=needs))
    return tuple(steps)


def resident(pid: int) -> int:
    """The peak memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class Process:
    """The real broker, as a child process."""

    PROGRAM: tuple[str, ...] = ("-m", "fabric.broker")

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = str(directory / "store")
        self.state = directory / "state"
        self.start()

    def start(self) -> None:
        self.began = time.monotonic()
        with (self.directory / "broker.err").open("ab") as errors:
            self.child = subprocess.Popen(
                [sys.executable, *self.PROGRAM, "--directory", str(self.directory),
                 "--state", str(self.state), "--store", self.store,
                 "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.directory / "broker.err").read_text()

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> float:
        """End it by SIGTERM; returns the seconds that this took."""
        began = time.monotonic()
        self.child.terminate()
        assert self.child.wait(10.0) == 0, self.said
        return time.monotonic() - began


class FakeWorker:
    """A worker with real sockets whose builds are Python functions of a name.

    ``build(name)`` returns the log, or raises Fails or MachineFails.
    """

    class Fails(Exception):
        log = b""

    class MachineFails(Exception):
        pass

    def __init__(
        self,
        directory: Path,
        name: str,
        build: Callable[[str], bytes] = lambda name: f"building {name}\n".encode(),
        *,
        slots: int = 1,
        lose_logs: bool = False,
        reconnect: int = 0,  # milliseconds until it connects again; 0: as workers do
        at: Addresses | None = None,
        curve: Curve | None = None,
    ) -> None:
        self.name = name
        self._reconnect = reconnect
        self.built: list[str] = []
        self.error: BaseException | None = None
        self._build = build
        self._lose_logs = lose_logs
        self._store = Store(str(directory / "store"), directory / f"scratch-{name}")
        self._at = at or sockets.in_directory(directory)
        self._curve = curve
        self._stop = threading.Event()
        self._logs: dict[tuple[str, int], bytes] = {}
        self._ended: list[tuple[tuple[str, int], str, bytes, str]] = []
        self.agent = WorkerAgent(name=name, instance=uuid.uuid4().hex, arch=ARCH, slots=slots)
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10.0)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        context = zmq.Context()
        try:
            self._jobs = sockets.dealer(context, self._curve)
            if self._reconnect:
                self._jobs.setsockopt(zmq.RECONNECT_IVL, self._reconnect)
                self._jobs.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
            sockets.connect(self._jobs, self._at.jobs)
            self._stream = sockets.publisher(context, self._curve)
            sockets.connect(self._stream, self._at.logs_in)
            self._codec: sockets.Codec[Desired | LogWanted | Rejected] = sockets.Codec(
                Desired | LogWanted | Rejected
            )
            while not self._stop.is_set():
                self._turn()
        except BaseException as error:  # noqa: BLE001  told to the test by `stop`
            self.error = error
        finally:
            context.destroy(linger=0)

    def _turn(self) -> None:
        self._do(self.agent.tick(time.monotonic()))
        self._jobs.poll(5)
        for frames in sockets.receive(self._jobs, 100):
            match message := self._codec.decode(frames[-1].bytes):
                case Desired():
                    self._do(self.agent.desired(message))
                    known = {*self.agent.running, *self.agent.unacked}
                    self._logs = {id: log for id, log in self._logs.items() if id in known}
                case LogWanted():
                    log = self._logs.get((message.key, message.fence), b"")
                    data = log[message.offset : message.offset + message.length]
                    piece = LogPiece(message.key, message.fence, message.offset, data)
                    sockets.send(self._jobs, self._codec.encode(piece))
                case Rejected():
                    raise AssertionError(message.reason)

    def _do(self, actions: Sequence[worker_side.Action]) -> None:
        for action in actions:
            match action:
                case worker_side.Send():
                    sockets.send(self._jobs, self._codec.encode(action.report))
                case worker_side.Start():
                    self._start(action)
                case worker_side.Kill():
                    self._do(self.agent.ended(Outcome(action.key, action.fence, "cancelled")))

    def _start(self, action: worker_side.Start) -> None:
        name = msgspec.msgpack.decode(action.job, type=str)
        result, message, log = "done", "", b""
        try:
            log = self._build(name)
        except FakeWorker.Fails as error:
            result, message, log = "failed", str(error), error.log
        except FakeWorker.MachineFails as error:
            result, message = "fault", str(error)
        except InterruptedError:
            return  # it hangs: never ends
        self.built.append(name)
        self._logs[action.key, action.fence] = log
        if not self._lose_logs:
            for offset in range(0, len(log), bounds.LOG_PIECE):
                data = log[offset : offset + bounds.LOG_PIECE]
                piece = Published(action.key, action.fence, offset, data)
                sockets.send(self._stream, piece.frame())
        digest = hashlib.sha256(log).hexdigest()
        if result == "done":
            blob = Blob(digest, len(log))
            self._store.put(
                Manifest(
                    key=action.key, kind="chunk", name=name, arch=ARCH, artifacts=(), log=blob
                ),
                {digest: log},
            )
        outcome = {
            "key": action.key, "fence": action.fence, "result": result, "message": message,
            "seconds": 0.01, "log_size": len(log), "log_sha256": digest,
        }  # fmt: skip
        self._do(self.agent.ended(msgspec.convert(outcome, Outcome)))


class Follower:
    """An initiator with real sockets."""

    def __init__(
        self,
        directory: Path,
        text: str,
        *goals: str,
        keep_going: bool = False,
        stream: bool = True,
        request: str = "",
        at: Addresses | None = None,
        curve: Curve | None = None,
    ) -> None:
        steps = steps_of(text)
        wanted = tuple(map(key_of, goals)) or (steps[0].key,)
        self.names = {step.key: step.name for step in steps}
        graph = BuildGraph(PROTOCOL, uuid.uuid4().hex, "a test", steps, wanted, keep_going)
        self.mirror = RequestMirror(request or graph)  # a request made elsewhere, or this one
        self.logs: dict[str, bytearray] = {}
        self.whole: dict[str, bool] = {}
        self.over: Over | None = None
        self._context = zmq.Context()
        at = at or sockets.in_directory(directory)
        self.jobs = sockets.dealer(self._context, curve)
        sockets.connect(self.jobs, at.jobs)
        topics = [""] if stream else []
        self._stream = sockets.subscriber(self._context, *topics, curve=curve)
        sockets.connect(self._stream, at.logs)
        self._codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)
        self._poller = zmq.Poller()
        self._poller.register(self.jobs, zmq.POLLIN)
        self._poller.register(self._stream, zmq.POLLIN)

    def follow(self, seconds: float = 30.0) -> str:
        """Follow the request until it is complete; returns its state."""
        self.turn_until(lambda: self.mirror.complete, seconds)
        return self.mirror.state

    def turn_until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen: {self.states()}"
            self.turn()

    def turn(self, at_once: int = 1000) -> None:
        now = time.monotonic()
        self._do(self.mirror.tick(now))
        self._poller.poll(max(1, min(100, int(1000 * (self.mirror.due - now)))))
        now = time.monotonic()
        for frames in sockets.receive(self.jobs, at_once):
            match message := self._codec.decode(frames[-1].bytes):
                case Update():
                    self._do(self.mirror.update(message, now))
                case LogPiece():
                    self._do(self.mirror.piece(message, now))
                case Rejected():
                    self._do(self.mirror.rejected(message, now))
        for (frame,) in sockets.receive(self._stream, at_once):
            self._do(self.mirror.published(Published.of(frame.buffer), now))

    def states(self) -> dict[str, str]:
        return {self.names[key]: step.state for key, step in self.mirror.steps.items()}

    def leave(self) -> None:
        self._do(self.mirror.leave())

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case request_logs.Send():
                    if not sockets.send(self.jobs, self._codec.encode(action.message)):
                        self.mirror.unsent(action.message)
                case request_logs.OpenLog():
                    self.logs[self.names[action.key]] = bytearray()
                case request_logs.AppendLog():
                    name = self.names[action.key]
                    assert action.offset == len(self.logs[name])
                    self.logs[name] += action.data
                case request_logs.CloseLog():
                    self.whole[self.names[action.key]] = action.whole
                case Over():
                    assert self.over is None
                    self.over = action
