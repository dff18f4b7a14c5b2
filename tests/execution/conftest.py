"""Fixtures of the tests of execution on an engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from building_kit import base, kit, tools  # noqa: F401
from engine_kit import broken, casd, engine, packer, proxy, staged  # noqa: F401
from initiator_kit import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Definitions, and a cache of their own."""
    made = Project(tmp_path / "definitions", tmp_path / "cache")
    yield made
    for child in made.children:
        if child.poll() is None:
            child.kill()
        child.communicate()
