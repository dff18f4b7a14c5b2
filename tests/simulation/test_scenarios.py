"""Many small disasters, each from one seed; all of them end well."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from pathlib import Path

import pytest
from simulator import Scenario, Simulation

SEEDS = int(os.environ.get("FABRIC_SEEDS", "300"))
#: Played one after another by one test each, so that they can be spread over cores.
PARTS = 10


def play(seed: int, directory: Path) -> Simulation:
    simulation = Simulation(Scenario.of(seed), directory / str(seed))
    try:
        simulation.play()
    except Exception as error:
        told = "".join(traceback.format_exception(error)[-3:])
        raise AssertionError(f"seed {seed}: {told}\n{simulation.tell()}") from error
    return simulation


@pytest.mark.parametrize("part", range(PARTS))
def test_scenarios(part: int, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(part, SEEDS, PARTS):
        counts += play(seed, tmp_path).counts
    assert counts["builds"] > SEEDS / PARTS
    print(f"{SEEDS // PARTS} scenarios: {dict(sorted(counts.items()))}")
