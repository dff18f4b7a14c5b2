"""Plays many seeds: ``make simulate SEEDS=N``, or again some from ``FIRST=SEED`` on.

Prints the first seed, how many scenarios and events there were, what went wrong in them by kind,
and how many violations were found.  The first violation is made as small as it can be, and told.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from scenarios import Scenario
from shrink import differences, shrink
from test_scenarios import play

#: Seeds are below this, so that they can be typed.
MOST = 10**10
#: Seeds that one process plays before it tells.
CHUNK = 25


Found = tuple[Counter[str], Counter[str], list[int]]


def some(first: int, last: int) -> Found:
    """What happened in these seeds: counts, faults, and seeds that went wrong."""
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations = []
    for seed in range(first, last):
        counts["scenarios"] += 1
        try:
            simulation = play(Scenario.of(seed))
        except AssertionError:
            violations.append(seed)
        else:
            counts += simulation.counts
            faults += simulation.faults
    return counts, faults, violations


def fails(scenario: Scenario) -> bool:
    try:
        play(scenario)
    except AssertionError:
        return True
    return False


def tell(seed: int) -> None:
    """The story of a seed that went wrong, made as short as it can be."""
    scenario = shrink(Scenario.of(seed), fails)
    try:
        play(scenario)
    except AssertionError as error:
        print(f"\nseed {seed}, made small: {differences(scenario)}\n\n{error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument(
        "--first", type=int, default=time.time_ns() // 1000 % MOST, help="the first one"
    )
    options = parser.parse_args()
    began = time.monotonic()
    print(f"seeds {options.first} to {options.first + options.seeds - 1}", flush=True)
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations: list[int] = []
    last = options.first + options.seeds
    starts = range(options.first, last, CHUNK)
    ends = [min(start + CHUNK, last) for start in starts]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for more, wrong, found in pool.map(some, starts, ends):
            counts += more
            faults += wrong
            violations += found
    seconds = time.monotonic() - began
    rate = counts["scenarios"] / seconds
    print(f"{counts['scenarios']} scenarios in {seconds:.0f} s, {rate:.1f} a second;")
    print(f"{counts['events']} events, {counts['messages']} messages, {counts['builds']} builds;")
    print(f"{faults.total()} faults:")
    for kind, count in faults.most_common():
        print(f"  {count:9} {kind}")
    print(f"violations: {len(violations)} {' '.join(map(str, violations))}")
    if violations:
        tell(violations[0])
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
