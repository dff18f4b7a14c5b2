"""Building twice, in different directories and another order, gives the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from systems_kit import MINIMAL, ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]


def artifacts(built: Built) -> dict[str, dict[str, Any]]:
    """Every artifact of every step by name."""
    steps = json.loads(built.run("show", str(ROOT / MINIMAL), "--json"))
    return {
        f"{step['kind']} {step['name']}: {artifact['name']}": artifact
        for step in steps
        for artifact in step["artifacts"]
    }


def test_every_artifact_has_the_same_bytes(minimal: Built, minimal_again: Built) -> None:
    first, second = artifacts(minimal), artifacts(minimal_again)
    assert first.keys() == second.keys()
    assert len(first) > 80
    different = [name for name in first if first[name] != second[name]]
    assert not different


def test_it_is_all_cached_now(minimal: Built) -> None:
    said = minimal.run("build", str(ROOT / MINIMAL))
    assert "steps cached" in said


def test_the_compiler_is_not_in_the_system(minimal: Built) -> None:
    minimal.run("checkout", str(ROOT / MINIMAL), "--to", "tree", "--force")
    names = {path.name for path in (minimal.logs / "tree/usr/bin").iterdir()}
    assert "gcc" not in names
    assert "busybox" in names
