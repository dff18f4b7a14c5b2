"""The example system is what its digests say, wherever it is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sbom_kit import bsi
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


def test_minimal_systems_sbom_is_what_tr_03183_2_requires(minimal: Built, tmp_path: Path) -> None:
    """Every component has a license and a supplier: those that no source says stand in lorries."""
    file = tmp_path / "minimal.spdx.json"
    author = "Example <https://example.com/>"
    minimal.run("sbom", str(ROOT / MINIMAL), "--author", author, "--to", str(file))
    found = bsi(file.read_bytes(), tmp_path)
    required = {name: passed for name, passed in found.items() if "(" not in name}
    assert len(required) > 10
    assert [name for name, passed in required.items() if not passed] == []
