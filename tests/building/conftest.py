"""Fixtures of the building tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from building_kit import Kit, copy_tools

from fabric.building.archive import Packed, pack
from fabric.building.tree import scan


@pytest.fixture(scope="session")
def tools() -> Iterator[Path]:
    """A tree that installs itself with `cp`: the sources of the chunk ``base``."""
    with tempfile.TemporaryDirectory() as name:
        copy_tools(Path(name))
        yield Path(name)


@pytest.fixture(scope="session")
def base(tools: Path) -> Packed:
    """The archive of those tools."""
    return pack(scan(tools).values(), tools.parent / f"{tools.name}.tar.zst")


@pytest.fixture
def kit(tmp_path: Path, base: Packed) -> Iterator[Kit]:
    made = Kit(tmp_path, base)
    with made.workspace:
        yield made
