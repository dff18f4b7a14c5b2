"""Definitions in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from initiator_kit import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "definitions", tmp_path / "cache")
    yield made
    for child in made.children:
        if child.poll() is None:
            child.kill()
        child.communicate()
