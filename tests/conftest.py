"""For every test: Hypothesis tries new examples, and prints how to repeat a failure.

Signals and environment are set as for a program that a user starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fabric_kit import Fabric
from farm_kit import Farm
from hypothesis import HealthCheck, settings

# the time that an example takes says nothing on a machine that does other work
settings.register_profile(
    "fresh",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fresh")

os.environ.pop("PYTHONUNBUFFERED", None)
# else each program that a test starts compiles all its modules
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest is in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets."""
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
