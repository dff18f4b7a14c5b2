"""Two builds in different folders and orders give the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from systems_kit import MINIMAL, ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]


def artifacts(built: Built) -> dict[str, dict[str, Any]]:
    """Name -> artifact, for all steps."""
    steps = json.loads(built.run("show", str(ROOT / MINIMAL), "--json"))
    return {
        f"{step['kind']} {step['name']}: {artifact['name']}": artifact
        for step in steps
        for artifact in step["artifacts"]
    }


def test_artifacts_are_reproducible(minimal: Built, minimal_again: Built) -> None:
    first, second = artifacts(minimal), artifacts(minimal_again)
    assert first.keys() == second.keys()
    assert len(first) > 80
    different = [name for name in first if first[name] != second[name]]
    assert not different


def test_minimal_system_is_all_cached_after_a_build(minimal: Built) -> None:
    said = minimal.run("build", str(ROOT / MINIMAL))
    assert "steps cached" in said


def test_minimal_system_holds_no_compiler(minimal: Built) -> None:
    minimal.run("checkout", str(ROOT / MINIMAL), "--to", "tree", "--force")
    names = {path.name for path in (minimal.logs / "tree/usr/bin").iterdir()}
    assert "gcc" not in names
    assert "busybox" in names
