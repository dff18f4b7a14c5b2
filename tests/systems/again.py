"""Compares the toolchain that stage 2 built with the one that it built itself.

    fabric-initiator show systems/toolchain-again-x86_64.morph --json |
        .venv/bin/python tests/systems/again.py

Fails if an artifact differs or is not built yet, or if a chunk is in one of the strata only.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

FIRST = "chunk:strata/toolchain.morph:"
AGAIN = "chunk:strata/toolchain-again.morph:"


class Pair(NamedTuple):
    """A chunk of both strata."""

    name: str
    said: str  # "identical", or the fault


def pairs(steps: list[dict[str, Any]]) -> list[Pair]:
    """The comparison of each chunk of stage 3; ``steps`` is what ``show --json`` prints."""
    digests = {
        step["id"]: {one["name"]: one["sha256"] for one in step["artifacts"]}
        for step in steps
        if step["kind"] == "chunk"
    }
    names = sorted(
        {name.removeprefix(AGAIN) for name in digests if name.startswith(AGAIN)}
        | {name.removeprefix(FIRST) for name in digests if _is_stage_3(name)}
    )
    return [Pair(one, _said(digests.get(FIRST + one), digests.get(AGAIN + one))) for one in names]


def _is_stage_3(step: str) -> bool:
    name = step.removeprefix(FIRST)
    return name != step and name != "seed" and not name.startswith("stage")


def _said(first: dict[str, str] | None, again: dict[str, str] | None) -> str:
    if first is None or again is None:
        return "is in one of the strata only"
    if not first or not again:
        return "not built yet"
    differ = [name for name in first if first[name] != again.get(name)]
    return f"differs: {', '.join(differ)}" if differ else "identical"


if __name__ == "__main__":
    found = pairs(json.load(sys.stdin))
    for pair in found:
        print(f"{pair.name}: {pair.said}")
    if not found:
        print("no chunk of stage 3 is there")
    sys.exit(not found or any(pair.said != "identical" for pair in found))
