"""The toolchain that is built from source, as far as its definitions tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.definitions.graph import Graph
from fabric.definitions.load import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toolchain() -> Graph:
    def read(path: str) -> bytes | None:
        file = ROOT / path
        return file.read_bytes() if file.is_file() else None

    return load(read, "systems/toolchain-x86_64.morph")


def test_toolchain_is_built_without_tools_of_the_machine(toolchain: Graph) -> None:
    assert not toolchain.needs_host_tools
    assert not toolchain.warnings


def test_each_stage_below_tools_is_in_no_system(toolchain: Graph) -> None:
    for step in toolchain.steps:
        if step.kind == "chunk" and (step.name == "seed" or step.name.startswith("stage")):
            assert not step.in_system, step.id
            assert step.prefix == ("/usr" if step.name == "seed" else "/tools"), step.id
