"""The cores of this machine during a build: idle, or asked of too much?

    python bench/cores.py [--workers 2 4] [CHUNK ...]

Builds the example system, or some of its chunks, from an empty cache, once with each number of
workers.  The yardstick is the CPU time of all processes of that very build, spread evenly over all
cores.  Time that other processes took is printed, and the ratio without it, which is right only if
these were few: they use cores that the build leaves idle.  "Jobs" are processes of the build that
run or wait for a core, "memory" is the most that was used above that at the beginning.  Takes ten
minutes of two cores for each build; sources are taken from the user's trove.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from pathlib import Path
from statistics import mean
from types import TracebackType

from example_system import SYSTEM, empty_cache

CORES = os.cpu_count() or 1
#: Seconds between two looks at the machine.
LOOK_EVERY = 1.0


def busy() -> float:
    """CPU seconds of all processes since the start of the machine."""
    user, nice, system, _, _, irq, soft, *_ = map(int, _stat(r"cpu  (.*)").split())
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _stat(pattern: str, file: str = "/proc/stat") -> str:
    found = re.search(pattern, Path(file).read_text())
    assert found
    return found[1]


def free_memory() -> float:
    """GiB of memory that programs could have."""
    return int(_stat(r"MemAvailable: +(\d+)", "/proc/meminfo")) / 1024**2


def running(top: int) -> int:
    """How many processes below the process ``top`` run, or wait for a core."""
    parents: dict[int, int] = {}
    ready = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(folder.name)] = int(parent)
            if state == "R":
                ready.append(int(folder.name))

    def is_below(process: int) -> bool:
        while process not in (top, 0):
            process = parents.get(process, 0)
        return process == top

    return sum(map(is_below, ready))


class Watch:
    """Looks at the machine, and at the processes below ``top``, while the block runs."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.jobs: list[int] = []
        self.free = [free_memory()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            self.jobs.append(running(self._top))
            self.free.append(free_memory())


def measure(workers: int, chunks: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        fabric = stack.enter_context(empty_cache("cores"))
        fabric.run("show", SYSTEM)  # imports the sources
        before, began = busy(), time.perf_counter()
        child = fabric.start("build", SYSTEM, *chunks, "--workers", str(workers))
        watch = stack.enter_context(Watch(child.pid))
        _, status, used = os.wait4(child.pid, 0)
        wall, machine = time.perf_counter() - began, busy() - before
    if status:
        sys.exit(f"the build ended with {os.waitstatus_to_exitcode(status)}")
    own = used.ru_utime + used.ru_stime
    others = max(0.0, machine - own)
    jobs = sorted(watch.jobs)
    print(
        f"{workers} workers: {wall:.1f} s; {own:.0f} s of CPU on {CORES} cores: ratio"
        f" {wall * CORES / own:.3f}\n"
        f"  others used {others:.0f} s; without them: ratio {(wall * CORES - others) / own:.3f}\n"
        f"  jobs at once: {mean(jobs):.1f} on average, {jobs[len(jobs) * 95 // 100]} at most in"
        f" 95 % of the looks, {jobs[-1]} at most\n"
        f"  memory: {watch.free[0] - min(watch.free):.1f} GiB at most",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chunks", nargs="*", metavar="CHUNK")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    given = parser.parse_args()
    for workers in given.workers:
        measure(workers, given.chunks)


if __name__ == "__main__":
    main()
