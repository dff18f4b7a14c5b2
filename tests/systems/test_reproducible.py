"""The example system is what its digests say, wherever it is built."""

from __future__ import annotations

import re

import pytest
from systems_kit import MINIMAL, ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]


def test_artifacts_are_those_of_everybody(minimal: Built) -> None:
    """The digests were written on another machine, at another time."""
    said = minimal.run("build", str(ROOT / MINIMAL), "--check-digests")
    [compared] = re.findall("(?m)^([0-9]+) artifacts are as in ", said)
    assert int(compared) > 100
    assert "not compared" not in said


def test_minimal_system_is_all_cached_after_a_build(minimal: Built) -> None:
    said = minimal.run("build", str(ROOT / MINIMAL))
    assert "steps cached" in said


def test_minimal_system_holds_no_compiler(minimal: Built) -> None:
    minimal.run("checkout", str(ROOT / MINIMAL), "--to", "tree", "--force")
    names = {path.name for path in (minimal.logs / "tree/usr/bin").iterdir()}
    assert "gcc" not in names
    assert "busybox" in names
