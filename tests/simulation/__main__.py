"""Plays many seeds: ``make simulate SEEDS=N``, or again some from ``FIRST=SEED`` on.

Prints the first seed, how many scenarios and events there were, what went wrong in them by kind,
which rare things happened, and which never did, and how many violations were found.  The first
violation is made as small as it can be, and told.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from campaign import play_all, told

#: Seeds are below this, so that they can be typed.
MOST = 10**10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument(
        "--first", type=int, default=time.time_ns() // 1000 % MOST, help="the first one"
    )
    options = parser.parse_args()
    began = time.monotonic()
    print(f"seeds {options.first} to {options.first + options.seeds - 1}", flush=True)
    found = play_all(options.first, options.seeds)
    seconds, counts = time.monotonic() - began, found.counts
    print(f"{options.seeds} scenarios in {seconds:.0f} s, {options.seeds / seconds:.1f} a second;")
    print(f"{counts['events']} events, {counts['messages']} messages, {counts['builds']} builds")
    _print("faults", found.faults)
    _print("rare things", found.happened)
    print("never happened:", "; ".join(found.never) or "none")
    print(f"violations: {len(found.violations)} {' '.join(map(str, found.violations))}")
    if found.violations:
        print(told(found.violations[0]))
    return 1 if found.violations else 0


def _print(what: str, counts: Counter[str]) -> None:
    print(f"{what}: {counts.total()}")
    for kind, count in counts.most_common():
        print(f"  {count:9} {kind}")


if __name__ == "__main__":
    sys.exit(main())
