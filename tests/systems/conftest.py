"""The minimal system."""

from __future__ import annotations

import pytest
from systems_kit import MINIMAL, Built, user_cache


@pytest.fixture(scope="session")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The minimal system in the user's own cache, as `make build` leaves it."""
    built = Built(user_cache(), tmp_path_factory.mktemp("first"))
    built.build(MINIMAL)
    return built
