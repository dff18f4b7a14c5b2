"""Fixtures of the deployment tests: a world with a VM host, and the built systems.

With ``-n 2``, two processes run the tests, each in a world of its own: one those with guests, whose
boots take all cores, and the other those with nodes, which mostly wait for Ansible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from systems_kit import BUILD_SYSTEM, ROOT, Built, user_cache
from vmhost_kit import VmHost
from world_kit import World
from xdist.scheduler import LoadScopeScheduling

refused = World.refused()
HERE = Path(__file__).parent
#: The tests whose guests take more than half of the time.
GUESTS = ("test_deploy.py", "test_minimal.py", "test_upgrade.py")


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


@pytest.fixture(scope="session")
def tree(built: Built) -> Path:
    """The root filesystem of the build-system, for nodes."""
    tree = built.logs / "tree"
    built.run("checkout", str(ROOT / BUILD_SYSTEM), "--to", str(tree))
    return tree


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is the same in the world and outside."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def world(scratch: Path, built: Built) -> Iterator[World]:
    with World(scratch, scratch, built.logs, built.cache) as world:
        world.environment["PATH"] = f"{Path(sys.executable).parent}:{world.environment['PATH']}"
        yield world


@pytest.fixture(scope="session")
def vmhost(world: World, scratch: Path) -> VmHost:
    return VmHost(world, scratch)
