"""A build on this machine with a real broker, workers that wait where told, and its pages."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import zmq
from fabric_kit import Fabric
from pictures_kit import ID
from playwright.sync_api import Page
from web_kit import HeldWorker, Pages, Web
from wire_kit import ARCH, FakeWorker

from fabric.building import agent as worker_side
from fabric.client.running import ALIVE, announce, link_to
from fabric.config import Settings
from fabric.wire import sockets
from fabric.wire.messages import PROTOCOL, BuildGraph, GraphStep, StepSpec, ToInitiator, Update


class PartlyHeld(HeldWorker):
    """A worker that builds at once, apart from steps that wait until they are released."""

    hold: frozenset[str] = frozenset()

    def _start(self, action: worker_side.Start) -> None:
        if self.name_of(action) in self.hold:
            super()._start(action)
        else:
            FakeWorker._start(self, action)


class Local:
    """A broker of this machine with a build, and the page that shows it."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        settings = Settings(cache=str(directory / "web-cache"))
        folder = directory / "build"
        folder.mkdir(mode=0o700)
        lock = stack.enter_context((folder / ALIVE).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        announce(link_to(settings.state_dir, folder), folder)
        self.fabric = Fabric(folder, stack)
        self.web = Web(directory, {"artifacts": str(folder / "store")})
        stack.callback(self.web.kill)
        self.token = self.web.printed.partition("token=")[2]

    def open(self, pages: Pages, what: str, *size: int, **options: Any) -> Page:
        """A page of the build: "graph" or "timeline"."""
        address = f"{self.web.url}/builds/{ID}/{what}"
        return pages.open(f"{address}?token={self.token}", *size, **options)

    def worker(
        self, name: str, slots: int, hold: Iterable[str] = (), **options: object
    ) -> PartlyHeld:
        worker = PartlyHeld(self.fabric.directory, name, slots=slots, **options)
        worker.hold = frozenset(hold)
        self._stack.callback(worker.stop)
        return worker

    def build(self, steps: Sequence[GraphStep], *goals: str) -> None:
        """Submit a build of all steps, or of what these need."""
        specs = tuple(
            StepSpec(
                key=step.key, name=step.name, kind=step.kind, arch=ARCH,
                job=msgspec.Raw(msgspec.msgpack.encode(step.name)),
                depends=tuple(steps[dep].key for dep in step.depends),
            )
            for step in steps
        )  # fmt: skip
        keys = tuple(step.key for step in steps if step.name in goals) or (steps[-1].key,)
        along = tuple(step.key for step in steps if step.kind == "stratum") if not goals else ()
        graph = BuildGraph(
            PROTOCOL, ID, "large for alice", specs, keys, keep_going=True, detach=True, along=along
        )
        context = zmq.Context()
        try:
            jobs = sockets.dealer(context)
            sockets.connect(jobs, sockets.in_directory(self.fabric.directory).jobs)
            codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)
            deadline = time.monotonic() + 60
            while True:
                assert time.monotonic() < deadline, self.fabric.broker.said
                sockets.send(jobs, codec.encode(graph))
                jobs.poll(1000)
                for frames in sockets.receive(jobs, 10):
                    assert isinstance(codec.decode(frames[-1].bytes), Update)
                    return
        finally:
            context.destroy(linger=0)

    def states(self) -> dict[str, str]:
        """The state of each chunk by name."""
        port = self.web.url.rpartition(":")[2]
        answer = self.web.get(
            f"/builds/{ID}/graph?format=json", cookie=f"fabric-web-{port}={self.token}"
        )
        assert answer.status == 200, answer
        steps = answer.json["steps"]
        return {step["name"]: step["state"] for step in steps if step["kind"] == "chunk"}
