"""The minimal system, built twice."""

from __future__ import annotations

import pytest
from systems_kit import MINIMAL, ROOT, Built, user_cache


@pytest.fixture(scope="session")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The minimal system in the user's own cache, as `make build` leaves it."""
    built = Built(user_cache(), tmp_path_factory.mktemp("first"))
    built.run("build", str(ROOT / MINIMAL))
    return built


@pytest.fixture(scope="session")
def minimal_again(minimal: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same, built from the same sources in a cache of its own at another path."""
    cache = tmp_path_factory.mktemp("another-cache")
    (cache / "trove").symlink_to(minimal.cache / "trove")
    built = Built(cache, tmp_path_factory.mktemp("second"))
    built.run("build", str(ROOT / MINIMAL), "--workers", "1")
    return built
