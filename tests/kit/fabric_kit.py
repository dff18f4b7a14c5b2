"""A broker process, with workers and initiators in the test process."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wire_kit import FakeWorker, Follower, Process


class Fabric:
    """A broker process, and the workers and initiators beside it."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self.broker = Process(directory)
        stack.callback(self.broker.kill)

    def worker(self, name: str = "w1", *args: Any, **options: Any) -> FakeWorker:
        worker = FakeWorker(self.directory, name, *args, **options)
        self._stack.callback(worker.stop)
        return worker

    def initiator(self, text: str, *goals: str, **options: Any) -> Follower:
        follower = Follower(self.directory, text, *goals, **options)
        self._stack.callback(follower.close)
        return follower
