"""Fixtures of tests with machines: a world, in it a VM host, and there a farm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests_kit import Guests
from systems_kit import BUILD_SYSTEM, ROOT, Built
from vmhost_kit import VmHost
from world_kit import World


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


@pytest.fixture(scope="session")
def farm(vmhost: VmHost, built: Built, scratch: Path) -> Guests:
    farm = Guests(vmhost, built, scratch)
    farm.deploy()
    return farm
