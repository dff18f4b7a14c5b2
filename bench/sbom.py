"""SBOMs: CPU time from the graph to the document, for the largest real system we have.

    python bench/sbom.py

prints the CPU seconds of one core (best of several runs) that each format takes in a new process,
its libraries included, and the ratio to loading the same system's definitions, measured in turns
with it.  The target is 1 s for 452 chunks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = 1.0  # seconds
FORMATS = ("spdx-json", "spdx-2.3-json", "cyclonedx-json")
#: Run in a process of its own, so that the first import of the libraries counts.
SCRIPT = """
import gc, json, sys, tempfile, time
gc.set_threshold(20_000)  # as `fabric.initiator.main` does
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from oracle_systems import definitions, rows
from fabric.definitions.load import load
from fabric.trove.sources.lorries import Lorries
row = max((row for row in rows() if row["ok"]), key=lambda row: len(row["chunks"]))
files = definitions(row)
begin = time.process_time()
graph = load(files.get, row["file"])
loaded = time.process_time()
repos = sorted({s.repo for s in graph.steps if s.kind == "chunk"})
with tempfile.TemporaryDirectory() as folder:
    text = "".join(
        f"{json.dumps(repo)}:\\n  type: git\\n  url: https://git.example/{n}.git\\n"
        "  license: GPL-2.0-or-later\\n  supplier: A <https://a.example/>\\n"
        for n, repo in enumerate(repos)
    )
    Path(folder, "all.lorry").write_text(text)
    lorries = Lorries(Path(folder))
start = time.process_time()
from fabric.commands.shared.bills import written
from fabric.sbom.collect import collect
bill = collect(graph, lorries, tool="0")
document = written(bill, sys.argv[3])
print(json.dumps({
    "seconds": time.process_time() - start, "load": loaded - begin, "bytes": len(document),
    "components": len(bill.components), "system": row["name"],
}))
"""


def measure(rounds: int) -> dict[str, Any]:
    """Figures of the largest system by format: seconds, best of ``rounds``."""
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMATS}
    for _ in range(rounds):
        for form, runs in found.items():
            places = [str(ROOT), str(ROOT / "tests/definitions")]
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, *places, form],
                check=True,
                capture_output=True,
                text=True,
            )
            runs.append(json.loads(done.stdout))
    return {
        form: {
            **runs[0],
            "seconds": min(run["seconds"] for run in runs),
            "load": min(run["load"] for run in runs),
        }
        for form, runs in found.items()
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    found = measure(chosen.rounds)
    if chosen.json:
        print(json.dumps(found))
        return 0
    for form, one in found.items():
        print(
            f"{form:15} {one['components']} components of {one['system']}: {one['seconds']:.2f} s"
            f" (target {TARGET:g}), {one['seconds'] / one['load']:.2f} of loading its definitions"
            f" ({one['load']:.2f} s), {one['bytes'] / 1e6:.1f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
