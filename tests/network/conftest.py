"""A farm for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from network_kit import Farm


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    made = Farm(tmp_path)
    yield made
    made.close()
