"""Real systems: `load` computes the same graphs as Baserock's tool."""

from __future__ import annotations

import re
from typing import Any

import pytest
from definitions_kit import check_order, loaded, new_view, old_view, small
from oracle_systems import definitions, rows

from fabric.definitions.keys import cache_keys
from fabric.definitions.select import needed

ROWS = list(rows())


@pytest.mark.parametrize("row", [row for row in ROWS if row["ok"]], ids=lambda row: row["file"])
def test_oracle_graph_is_the_same(row: dict[str, Any]) -> None:
    graph = loaded(definitions(row), row["file"])
    ours, theirs = new_view(graph), old_view(row)
    for part in theirs:  # part by part, for a readable difference
        assert ours[part] == theirs[part], part
    check_order(graph)
    wanted = needed(graph, [graph.root.id])
    assert {step.id for step in graph.steps if step.in_system and step.kind == "chunk"} <= wanted
    for step in graph.steps:
        assert step.kind != "chunk" or step.id not in wanted or wanted.issuperset(step.staged)
    trees = {step: "0" * 40 for step in wanted if graph[step].kind == "chunk"}
    keys = cache_keys(graph, trees, "host")
    assert wanted <= keys.keys()
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("row", [row for row in ROWS if not row["ok"]], ids=lambda row: row["file"])
def test_oracle_cross_bootstrap_systems_load(row: dict[str, Any]) -> None:
    """The last version of Baserock's tool refuses a source with two morphs of one name."""
    pairs = re.findall(r"\t([^|]+)\|([^|]+)\|([^|]+)\|(\S+)", row["message"])
    strata: dict[str, list[str]] = {}
    chunks = {}
    for repo, ref, morph, name in pairs:
        home = morph.split("/")[1]
        entry = f"- {{name: {name}, repo: '{repo}', ref: {ref}, morph: {morph}}}"
        strata.setdefault(home, []).append(entry)
        chunks[morph] = f"name: {name}\nkind: chunk\n"
    files = small(
        **{
            home: f"name: {home}\nkind: stratum\nbuild-depends: []\nchunks:\n" + "\n".join(specs)
            for home, specs in strata.items()
        }
    )
    graph = loaded({**files, **chunks})
    built = [step for step in graph.steps if step.kind == "chunk"]
    assert sorted(step.morph for step in built) == sorted(chunks)
    assert all(step.in_system for step in built)


def test_oracle_has_all_systems() -> None:
    assert len(ROWS) == 86
    assert sum(not row["ok"] for row in ROWS) == 6
