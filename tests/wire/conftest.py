"""Brokers, workers and initiators that are ended after each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from farm_kit import Farm
from wire_kit import FakeWorker, Follower, Process


class Fabric:
    """A broker process, and whoever is started beside it."""

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


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fabric-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fabric(directory: Path) -> Iterator[Fabric]:
    with ExitStack() as stack:
        yield Fabric(directory, stack)


@pytest.fixture
def farm(directory: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        yield Farm(directory, stack)
