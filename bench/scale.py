"""The core with 2,000 workers and up to 100,000 jobs: what a job costs, and whether it drifts.

Virtual workers take jobs, report that they run and that they are done; the store answers at
once; somebody follows.  Only the core is at work and only its calls are timed, so this is what
one thread of a broker spends on deciding.  Each size is measured in a process of its own, three
times; the best counts.  The ratios to 1,000 jobs are what matters::

    python bench/scale.py [JOBS ...]

``taking in`` is all that a new request costs until its jobs wait for workers, ``a job`` everything
after that, both by jobs; ``p99`` and ``longest`` are of single calls.  Memory is what the core
needs beyond the request itself.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import heapq
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from fabric.scheduling import events
from fabric.scheduling.model import Limits
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import (
    PROTOCOL,
    Attempt,
    BuildGraph,
    Desired,
    Outcome,
    Report,
    Running,
    StepSpec,
)

WORKERS = 2000
SIZES = (1_000, 10_000, 100_000)
ROUNDS = 3
#: Nobody is lost here; heartbeats are measured apart.
LIMITS = Limits(lease=1e9, stale=1e9, patience=1e9)
#: Calls between two updates to whoever follows.
UPDATE_EVERY = 100


class Clock:
    """Times calls of the core, and moves virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent: list[int] = []  # nanoseconds of CPU of each call

    def handle(self, core: Scheduler, event: events.Event) -> list[events.Effect]:
        before = time.thread_time_ns()
        effects = core.handle(event, self.now)
        self.spent.append(time.thread_time_ns() - before)
        return effects

    def desired(self, core: Scheduler, name: str) -> Desired:
        before = time.thread_time_ns()
        desired = core.desired(name)
        self.spent[-1] += time.thread_time_ns() - before
        assert desired is not None
        return desired


def specs(jobs: int, seed: int) -> tuple[StepSpec, ...]:
    """A request in which each job needs three of the five hundred before it, and the last all
    that nobody else needs.
    """
    rng = random.Random(seed)
    keys = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(jobs)]
    loose = dict.fromkeys(range(jobs - 1))
    job = msgspec.Raw(b"\xc0")
    made = []
    for n, key in enumerate(keys):
        below = sorted({rng.randrange(max(0, n - 500), n) for _ in range(3)}) if n else []
        for each in below:
            loose.pop(each, None)
        if n == jobs - 1:
            below = [*loose]
        depends = tuple(keys[each] for each in below)
        log = f"build-step-chunk{n}.log"
        made.append(StepSpec(key, f"chunk{n}", "chunk", "x86_64", job, log, depends))
    made.reverse()
    return tuple(made)


class Farm:
    """The core and its virtual workers."""

    def __init__(self, requests: int) -> None:
        self.clock = Clock()
        self.core = Scheduler(LIMITS, now=0.0)
        self.requests = {f"r{n}": 0 for n in range(requests)}  # -> version seen
        self.stored: set[str] = set()
        self.sequence = dict.fromkeys((f"w{n}" for n in range(WORKERS)), 0)
        self.answered = dict.fromkeys(self.sequence, 0)
        self.running: dict[str, Attempt | None] = dict.fromkeys(self.sequence)
        self.finished: dict[str, Attempt | None] = dict.fromkeys(self.sequence)
        self.ends: list[tuple[float, str]] = []
        self.rng = random.Random(1)
        for name in self.sequence:
            self.report(name)

    def report(self, name: str) -> None:
        self.sequence[name] += 1
        runs, done = self.running[name], self.finished[name]
        report = Report(
            PROTOCOL,
            name,
            "x86_64",
            1,
            self.sequence[name],
            running=(Running(runs.key, runs.fence),) if runs else (),
            finished=(Outcome(done.key, done.fence, "done", seconds=1.0),) if done else (),
            answered=self.answered[name],
        )
        self.apply(report)

    def apply(self, event: events.Event) -> None:
        pending = [event]
        while pending:
            for effect in self.clock.handle(self.core, pending.pop()):
                if isinstance(effect, events.QueryStore):
                    present = self.stored.intersection(effect.keys)
                    pending.append(events.StoreAnswered(effect.question, frozenset(present)))
                elif isinstance(effect, events.SendDesired):
                    self.obey(effect.worker, self.clock.desired(self.core, effect.worker))
            if not pending and self.core.next_due() <= self.clock.now:
                pending.append(events.Tick())

    def obey(self, name: str, desired: Desired) -> None:
        self.answered[name] = desired.sequence
        done = self.finished[name]
        if done is not None and done in desired.acked:
            self.finished[name] = None
        for each in desired.start:
            if self.running[name] is None:
                self.running[name] = Attempt(each.key, each.fence)
                heapq.heappush(self.ends, (self.clock.now + self.rng.uniform(1.0, 3.0), name))

    def follow(self) -> None:
        for request, seen in self.requests.items():
            update = self.core.update(request, seen, self.clock.now)
            assert update is not None
            self.requests[request] = update.version

    def play(self) -> None:
        """Until every request is done."""
        count = 0
        while self.ends:
            self.clock.now, name = heapq.heappop(self.ends)
            self.report(name)  # it runs
            attempt = self.running[name]
            assert attempt is not None
            self.stored.add(attempt.key)
            self.running[name], self.finished[name] = None, attempt
            self.report(name)  # it is done
            count += 1
            if count % UPDATE_EVERY == 0:
                self.follow()


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(jobs: int, requests: int) -> dict[str, float]:
    """One run: microseconds and bytes for a job."""
    gc.freeze()
    gc.set_threshold(20_000, 1_000_000, 1_000_000)  # as `fabric.broker` does
    farm = Farm(requests)
    submits = [
        BuildGraph(PROTOCOL, f"r{n}", "a request", made, (made[0].key,))
        for n in range(requests)
        for made in [specs(jobs // requests, n)]
    ]
    gc.collect()
    before, farm.clock.spent = resident(), []
    for submit in submits:
        farm.apply(submit)
    taken_in, longest, farm.clock.spent = sum(farm.clock.spent), max(farm.clock.spent), []
    memory = resident() - before
    farm.play()
    spent = sorted(farm.clock.spent)
    assert all(request.state == "done" for request in farm.core.state.requests.values())
    farm.clock.spent = []
    for name in farm.sequence:
        farm.report(name)
    return {
        "taking in": taken_in / jobs / 1000,
        "a job": sum(spent) / jobs / 1000,
        "p99": spent[len(spent) * 99 // 100] / 1000,
        "longest": max(longest, spent[-1]) / 1000,
        "heartbeat": sum(farm.clock.spent) / WORKERS / 1000,
        "memory": memory / jobs,
    }


def best(jobs: int, requests: int) -> dict[str, float]:
    """The least of several runs, each in a process of its own."""
    command = [sys.executable, __file__, "--one", str(jobs), str(requests)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(ROUNDS)]
    return {name: min(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("sizes", nargs="*", type=int, metavar="JOBS", default=list(SIZES))
    top.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    options = top.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    sizes = options.sizes
    print(f"{WORKERS} workers; microseconds of CPU, best of {ROUNDS}")
    shown = ("taking in", "a job", "p99", "longest", "heartbeat")
    print(f"{'jobs':>8} {'requests':>8} " + " ".join(f"{name:>9}" for name in shown), end="")
    print(f" {'bytes/job':>9} {'a job: ratio':>12}")
    first = 0.0
    for jobs, requests in [*((jobs, 1) for jobs in sizes), (sizes[-1], 100)]:
        found = best(jobs, requests)
        first = first or found["a job"]
        print(f"{jobs:8} {requests:8} " + " ".join(f"{found[name]:9.1f}" for name in shown), end="")
        print(f" {found['memory']:9.0f} {found['a job'] / first:12.2f}", flush=True)


if __name__ == "__main__":
    main()
