"""Loading definitions: CPU time from files to cache keys, for the largest real system we have.

    python bench/definitions.py

prints the CPU seconds of one core (best of several runs) that load + resolve + cache keys take,
and of `yaml.load` with the C loader for the same files, measured in turns with it.  The target
is 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "definitions")]

from oracle_systems import definitions, rows  # noqa: E402 - the path is set above

from fabric.definitions.graph import Graph  # noqa: E402
from fabric.definitions.keys import cache_keys  # noqa: E402
from fabric.definitions.load import load  # noqa: E402

TARGET = 0.3  # seconds


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(rounds: int) -> dict[str, Any]:
    """Figures of the largest system: seconds, best of ``rounds``."""
    row = max((row for row in rows() if row["ok"]), key=lambda row: len(row["chunks"]))
    files = definitions(row)
    graph = load(files.get, row["file"])
    trees = {step.id: step.ref for step in graph.steps if step.kind == "chunk"}

    def keys() -> Graph:
        made = load(files.get, row["file"])
        cache_keys(made, trees, "host")
        return made

    def parse() -> None:
        for content in files.values():
            yaml.load(content, yaml.CSafeLoader)

    ours, floor, only_keys = [], [], []
    for _ in range(rounds):
        ours.append(cpu(keys))
        floor.append(cpu(parse))
        only_keys.append(cpu(lambda: cache_keys(graph, trees, "host")))
    return {
        "system": row["name"],
        "chunks": len(trees),
        "files": len(files),
        "seconds": min(ours),
        "keys_seconds": min(only_keys),
        "yaml_seconds": min(floor),
        "ratio": min(ours) / min(floor),
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    found = measure(chosen.rounds)
    if chosen.json:
        print(json.dumps(found))
        return 0
    print(f"{found['system']}: {found['chunks']} chunks, {found['files']} files")
    print(f"load + resolve + cache keys  {found['seconds']:.3f} s CPU (target {TARGET} s)")
    print(f"  of it cache keys           {found['keys_seconds']:.3f} s")
    print(f"yaml.CSafeLoader, same files {found['yaml_seconds']:.3f} s")
    print(f"ratio                        {found['ratio']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
