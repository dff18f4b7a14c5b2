"""The systems from source, in the user's own cache: in an empty one, they take hours."""

from __future__ import annotations

import pytest
from machines_kit import scratch, vmhost, world  # noqa: F401
from systems_kit import Built, user_cache


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(user_cache(), tmp_path_factory.mktemp("from_source"))
