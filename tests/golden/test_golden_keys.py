"""The cache keys of a small fixed set of definitions.

A key names artifacts in stores that outlive every release.  When this test fails, either
something went into the keys by mistake, and then it must come out again; or what is built has
really changed, and then `fabric.definitions.keys.KEY_VERSION` is raised, the new keys are
written with ``python tests/golden/test_golden_keys.py``, and CHANGELOG.md says that everything
will be built anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from fabric.definitions.graph import Graph
from fabric.definitions.keys import KEY_VERSION, cache_keys
from fabric.definitions.load import load

_HERE = Path(__file__).parent
_DEFINITIONS = _HERE / "definitions"
_KEYS = _HERE / "keys.json"


def read(path: str) -> bytes | None:
    file = _DEFINITIONS / path
    return file.read_bytes() if file.is_file() else None


def golden() -> tuple[Graph, dict[str, str]]:
    """The graph and its keys, with trees made up from the refs."""
    graph = load(read, "systems/golden.morph")
    trees = {step.id: step.ref[::-1] for step in graph.steps if step.kind == "chunk"}
    return graph, cache_keys(graph, trees, "0123456789abcdef")


def test_keys_stay() -> None:
    graph, keys = golden()
    kept = json.loads(_KEYS.read_text())
    changed = [step for step in keys if kept["keys"].get(step) != keys[step]]
    assert kept["version"] == KEY_VERSION, f"KEY_VERSION was raised: {__doc__}"
    assert not changed, f"the keys of {', '.join(changed)} changed: {__doc__}"
    assert kept["keys"].keys() == {step.id for step in graph.steps}


def test_they_cover_every_kind_of_field() -> None:
    """What is not in the golden definitions could change its place in the key unseen."""
    graph, _ = golden()
    recipes = [step.recipe for step in graph.steps if step.recipe is not None]
    assert {step.mode for step in graph.steps} == {"staging", "bootstrap", "test", "import"}
    for field in ("commands", "rules", "max_jobs", "devices", "integration", "submodules"):
        assert any(getattr(recipe, field) for recipe in recipes), field
    assert any(len(step.path_prefixes) > 1 for step in graph.steps)
    assert not graph.warnings


if __name__ == "__main__":
    _KEYS.write_text(json.dumps({"version": KEY_VERSION, "keys": golden()[1]}, indent=1) + "\n")
