"""The systems that are built from source, as far as their definitions tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.definitions.graph import Graph
from fabric.definitions.load import load
from fabric.trove.sources.lorries import Lorries

ROOT = Path(__file__).parents[2]
SYSTEMS = ("toolchain", "base-system", "build-system")


@pytest.fixture(scope="module", params=SYSTEMS)
def graph(request: pytest.FixtureRequest) -> Graph:
    def read(path: str) -> bytes | None:
        file = ROOT / path
        return file.read_bytes() if file.is_file() else None

    return load(read, f"systems/{request.param}-x86_64.morph")


def test_no_chunk_needs_tools_of_the_machine(graph: Graph) -> None:
    assert not graph.needs_host_tools
    assert not graph.warnings


def test_each_stage_below_tools_is_in_no_system(graph: Graph) -> None:
    for step in graph.steps:
        if step.kind == "chunk" and (step.name == "seed" or step.name.startswith("stage")):
            assert not step.in_system, step.id
            assert step.prefix == ("/usr" if step.name == "seed" else "/tools"), step.id


def test_only_the_seed_is_binary_packages(graph: Graph) -> None:
    lorries = Lorries(ROOT / "sources")
    binary = [
        step.id
        for step in graph.steps
        if step.kind == "chunk" and (lorry := lorries.get(step.repo)) and lorry.is_set
    ]
    assert binary == ["chunk:strata/toolchain.morph:seed"]


def test_what_is_built_with_the_seed_is_left_behind_with_it(graph: Graph) -> None:
    """Only stage 1 and stage 2 have it in their staging areas."""
    for step in graph.steps:
        if "chunk:strata/toolchain.morph:seed" in step.staged:
            assert step.name.startswith("stage"), step.id
            assert not step.in_system, step.id
