"""The comparison of the toolchain with the one that it built itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import again


def step(stratum: str, name: str, **digests: str) -> dict[str, Any]:
    """A step as `show --json` prints it."""
    artifacts = [{"name": one, "sha256": digest} for one, digest in digests.items()]
    return {
        "id": f"chunk:strata/{stratum}.morph:{name}",
        "kind": "chunk",
        "artifacts": artifacts,
    }


FIRST, AGAIN = "toolchain", "toolchain-again"


def test_each_chunk_of_stage_3_is_compared() -> None:
    steps = [
        step(FIRST, "seed", bins="0"),
        step(FIRST, "stage2-gcc", bins="0"),
        step(FIRST, "gcc", bins="1", libs="2"),
        step(FIRST, "make", bins="3"),
        step(AGAIN, "gcc", bins="1", libs="5"),
        step(AGAIN, "make", bins="3"),
        {"id": "stratum:strata/toolchain.morph", "kind": "stratum", "artifacts": []},
    ]
    assert again.pairs(steps) == [("gcc", "differs: libs"), ("make", "identical")]


def test_chunk_without_its_other_is_no_success() -> None:
    steps = [step(FIRST, "gcc", bins="1"), step(AGAIN, "make", bins="1"), step(FIRST, "sed")]
    only = "is in one of the strata only"
    assert again.pairs(steps) == [("gcc", only), ("make", only), ("sed", only)]


def test_chunk_that_is_not_built_is_no_success() -> None:
    steps = [step(FIRST, "gcc", bins="1"), step(AGAIN, "gcc")]
    assert again.pairs(steps) == [("gcc", "not built yet")]


def compared(*steps: dict[str, Any]) -> int:
    command = [sys.executable, str(again.__file__)]
    return subprocess.run(command, input=json.dumps(steps), text=True, check=False).returncode


def test_program_succeeds_if_all_are_identical() -> None:
    assert compared(step(FIRST, "gcc", bins="1"), step(AGAIN, "gcc", bins="1")) == 0
    assert compared(step(FIRST, "gcc", bins="1"), step(AGAIN, "gcc", bins="2")) == 1
    assert compared(step(FIRST, "seed", bins="1")) == 1
