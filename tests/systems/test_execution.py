"""The example system on an execution engine: its artifacts are those of everybody."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from engine_kit import running
from systems_kit import MINIMAL, ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

#: Built by the engine unless all chunks are: strip writes to read-only libraries of the first.
SOME = ("e2fsprogs", "lua")


def test_artifacts_of_an_engine_are_those_of_everybody(minimal: Built, tmp_path: Path) -> None:
    """With ``EXECUTION=all`` in the environment, every chunk is built (`make execution-system`)."""
    system = str(ROOT / MINIMAL)
    cache, logs = tmp_path / "cache", tmp_path / "logs"
    for folder in (cache, logs):
        folder.mkdir()
    (cache / "trove").symlink_to(minimal.cache / "trove")
    steps = json.loads(minimal.run("show", system, "--json"))
    chunks = [one["name"] for one in steps if one["kind"] == "chunk"]
    if os.environ.get("EXECUTION") != "all":
        chunks = list(SOME)
        minimal.run("artifact", "push", system, "--to", str(cache / "artifacts"))
        for one in steps:
            if one["name"] in SOME or one["kind"] != "chunk":
                (cache / "artifacts/manifests" / one["key"]).unlink(missing_ok=True)
    with running(tmp_path / "engine") as engine:
        fresh = replace(minimal, cache=cache, logs=logs)
        environ = {"FABRIC_EXECUTE": f"grpc://{engine.host}"}
        said = fresh.run("build", system, "--check-digests", environ=environ)
    [compared] = re.findall("(?m)^([0-9]+) artifacts are as in ", said)
    assert int(compared) > 100
    executed = {
        name
        for name in chunks
        for log in logs.glob(f"build-step-{name}-misc.log")
        if "### executed at " in log.read_text(errors="replace")
    }
    imported = {"debian-toolchain", "kernel-tools"}
    assert executed == set(chunks) - imported
