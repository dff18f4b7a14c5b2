"""Plays many seeds: ``make simulate SEEDS=N``.

Prints how many scenarios and events there were, what went wrong in them by kind, and how many
violations were found; of the first one, the whole story.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from test_scenarios import play

#: Seeds that one process plays before it tells.
CHUNK = 25


def some(first: int, last: int) -> tuple[Counter[str], Counter[str], list[tuple[int, str]]]:
    """What happened in these seeds: counts, faults, and violations with their stories."""
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(first, last):
            counts["scenarios"] += 1
            try:
                simulation = play(seed, Path(directory))
            except AssertionError as error:
                violations.append((seed, str(error)))
            else:
                counts += simulation.counts
                faults += simulation.faults
    return counts, faults, violations


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    options = parser.parse_args()
    began = time.monotonic()
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations: list[tuple[int, str]] = []
    last = options.first + options.seeds
    starts = range(options.first, last, CHUNK)
    ends = [min(start + CHUNK, last) for start in starts]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for more, wrong, found in pool.map(some, starts, ends):
            counts += more
            faults += wrong
            violations += found
    seconds = time.monotonic() - began
    print(f"{counts['scenarios']} scenarios in {seconds:.0f} s, {counts['events']} events,")
    print(f"{counts['messages']} messages, {counts['builds']} builds; {faults.total()} faults:")
    for kind, count in faults.most_common():
        print(f"  {count:9} {kind}")
    print(f"violations: {len(violations)}")
    if violations:
        seed, told = violations[0]
        print(f"\nseeds {' '.join(str(each) for each, _ in violations)}; the story of {seed}:\n")
        print(told)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
