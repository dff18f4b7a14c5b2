"""Many small disasters, each from one seed; all of them end well.

These are the same in each run.  ``make simulate`` plays seeds that nobody has seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import pytest
from scenarios import Scenario
from simulator import Simulation

SEEDS = int(os.environ.get("FABRIC_SEEDS", "2000"))
#: Played one after another by one test each, so that they can be spread over cores.
PARTS = 20


def play(scenario: Scenario) -> Simulation:
    """Play a scenario to its end.  AssertionError tells what went wrong, with the story."""
    with tempfile.TemporaryDirectory(prefix="simulation-") as directory:
        simulation = Simulation(scenario, Path(directory))
        try:
            simulation.play()
        except Exception as error:
            told = "".join(traceback.format_exception(error)[-3:])
            told = f"{simulation.report()}\n\nseed {scenario.seed}: {told}"
            raise AssertionError(told) from error
        finally:
            simulation.close()
    return simulation


@pytest.mark.parametrize("part", range(PARTS))
def test_scenarios(part: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(part, SEEDS, PARTS):
        counts += play(Scenario.of(seed)).counts
    assert counts["builds"] > SEEDS / PARTS


def test_a_seed_is_one_history() -> None:
    """The same seed gives the same messages in any process: no set decides about any order."""
    program = (
        "import sys; from test_scenarios import Scenario, play\n"
        "for seed in range(6):\n"
        "    print(play(Scenario.of(seed)).trace.hexdigest())\n"
    )
    told = set()
    for salt in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": salt,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(done.stdout)
    [history] = told
    assert len(set(history.split())) == 6
