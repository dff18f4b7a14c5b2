"""Brokers, workers and initiators that are ended after each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fabric_kit import Fabric
from farm_kit import Farm


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
