"""Fixtures of the deployment tests: a world with a VM host, and the built systems.

With ``-n 2``, two processes run the tests, each in a world of its own: one those with a farm of
guests, whose boots take all cores, and the other those with nodes, which mostly wait for Ansible.
The former share that farm: each leaves it in order for the next one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from machines_kit import farm, scratch, tree, vmhost, world  # noqa: F401
from systems_kit import BUILD_SYSTEM, Built, user_cache
from world_kit import World
from xdist.scheduler import LoadScopeScheduling

refused = World.refused()
HERE = Path(__file__).parent
#: The tests that share a farm of guests.
GUESTS = ("test_deploy.py", "test_upgrade.py")


class ByMachines(LoadScopeScheduling):
    """Gives the tests with guests to one process of pytest-xdist, and the others to another."""

    def _split_scope(self, nodeid: str) -> str:
        return "guests" if nodeid.partition("::")[0].endswith(GUESTS) else "nodes"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> ByMachines:
    return ByMachines(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a world if this machine cannot make one."""
    for item in items:
        if HERE in item.path.parents and refused:
            item.add_marker(pytest.mark.skip(reason=refused))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build-system, built in the user's own cache."""
    built = Built(user_cache(), tmp_path_factory.mktemp("built"))
    built.build(BUILD_SYSTEM)
    return built
