"""The current folder is that of somebody's definitions: no program of ours imports from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.trove.importers import pypi, wheels

MODULES = ("pip", "json", "encodings", "site", "sitecustomize", "os")


def test_pip_is_not_taken_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert wheels._python_with_pip()
    assert pypi._pip_settings()["indexes"]
    assert not canary.exists()
