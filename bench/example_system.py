"""The example system from an empty cache, against the best schedule of its own steps.

Each step's time is what the worker took for it in this very run, from fetching to packing.  The
yardstick is a list schedule of these times on two workers, longest way first, with nothing in
between: what a plain `make -j2` of the same steps would need.  Takes ten minutes of two cores or
more, and shows on standard error how far it is; sources are taken from the user's trove.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
SYSTEM = str(ROOT / "systems/minimal-system-x86_64.morph")
WORKERS = 2


def schedule(seconds: dict[str, float], needs: dict[str, list[str]]) -> float:
    """When the last step ends, on ``WORKERS`` workers that never wait needlessly."""
    users: dict[str, list[str]] = {key: [] for key in seconds}
    for key, below in needs.items():
        for other in below:
            users[other].append(key)
    rank: dict[str, float] = {}

    def way(key: str) -> float:
        if key not in rank:
            rank[key] = seconds[key] + max(map(way, users[key]), default=0.0)
        return rank[key]

    missing = {key: len(below) for key, below in needs.items()}
    ready = [(-way(key), key) for key, count in missing.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < WORKERS:
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[key], key))
        now, ended = heapq.heappop(running)
        for key in users[ended]:
            missing[key] -= 1
            if not missing[key]:
                heapq.heappush(ready, (-way(key), key))
    return now


class Fabric:
    """The commands of a user whose artifacts are in ``cache``."""

    def __init__(self, scratch: Path, cache: Path, environ: Mapping[str, str]) -> None:
        self._scratch = scratch
        self._environ = os.environ | environ | {"FABRIC_CACHE": str(cache)}

    def start(self, *args: str, output: int | TextIO = sys.stderr) -> subprocess.Popen[str]:
        initiator = str(Path(sys.executable).with_name("fabric-initiator"))
        return subprocess.Popen(
            [initiator, *args], cwd=self._scratch, env=self._environ, stdout=output, text=True
        )

    def run(self, *args: str, output: int | TextIO = subprocess.PIPE) -> str:
        child = self.start(*args, output=output)
        text, _ = child.communicate()
        if child.returncode:
            sys.exit(f"fabric-initiator {args[0]} ended with {child.returncode}")
        return text or ""


@contextmanager
def empty_cache(name: str, environ: Mapping[str, str] | None = None) -> Iterator[Fabric]:
    """Without any artifact, and with the sources of the user's trove."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/var/tmp") as scratch:
        cache = Path(scratch, "cache")
        cache.mkdir()
        (cache / "trove").symlink_to(base / "distbuild/trove")
        yield Fabric(Path(scratch), cache, environ or {})


def main() -> None:
    with empty_cache("example-system") as fabric:
        fabric.run("show", SYSTEM)  # imports the sources
        began = time.perf_counter()
        fabric.run("build", SYSTEM, "--workers", str(WORKERS), output=sys.stderr)
        wall = time.perf_counter() - began
        steps: list[dict[str, Any]] = json.loads(fabric.run("show", SYSTEM, "--json"))
    seconds = {step["key"]: step["seconds"] for step in steps if step["cached"]}
    needs = {
        step["key"]: [key for key in step["depends"] if key in seconds]
        for step in steps
        if step["cached"]
    }
    best = schedule(seconds, needs)
    print(f"{len(seconds)} steps, {sum(seconds.values()):.0f} s of work, {WORKERS} workers")
    print(f"best schedule {best:.1f} s, fabric {wall:.1f} s: ratio {wall / best:.3f}")
    print(f"load average {os.getloadavg()[1]:.1f}: above {2 * WORKERS}, others were at work, too")
    print(f"overhead {1000 * (wall - best) / len(seconds):.0f} ms a step")


if __name__ == "__main__":
    main()
