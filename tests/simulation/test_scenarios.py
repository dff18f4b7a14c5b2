"""Many small disasters, each from one seed; all of them end well.

The seeds come from the commit, so that each commit plays others, and each run of a commit the same.
``make simulate`` plays seeds that nobody has seen.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import play, play_all, told
from children import child_environment
from scenarios import Scenario

pytestmark = pytest.mark.long

#: Seeds to play at least.  The rarest event happens in one of 400, so more are played if need be.
SEEDS = int(os.environ.get("FABRIC_SEEDS", "800"))
MOST = 4000


def of_commit() -> int:
    """The first seed for this commit; 0 where there is none."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return int(done.stdout[:8] or "0", 16)


@pytest.mark.timeout(1800)
def test_simulation_of_fresh_seeds() -> None:
    first = of_commit()
    found = play_all(first, SEEDS, MOST)
    again = f"again: make simulate FIRST={first} SEEDS={found.counts['scenarios']}"
    assert not found.violations, f"{found.violations}\n{told(found.violations[0])}\n{again}"
    assert not found.never, f"never happened: {found.never}\n{again}"


@pytest.mark.parametrize(("wanted", "played"), [((), 4), (("what never happens",), 8)])
def test_more_seeds_are_played_until_what_is_rare_has_happened(
    monkeypatch: pytest.MonkeyPatch, wanted: tuple[str, ...], played: int
) -> None:
    monkeypatch.setattr("campaign.WANTED", wanted)
    monkeypatch.setattr("campaign.CHUNK", 2)
    assert play_all(41, 3, 8).counts["scenarios"] == played


def test_make_simulate_plays_the_seeds_it_was_given() -> None:
    tools = Path(sys.executable).parent
    done = subprocess.run(
        ["make", "-o", "setup-dev", f"BIN={tools}", "simulate", "SEEDS=3", "FIRST=41"],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "seeds 41 to 43\n" in done.stdout, done.stdout + done.stderr
    assert "violations: 0" in done.stdout


def test_simulation_of_a_seed_is_repeatable() -> None:
    """The same seed gives the same messages in any process: no set decides about any order."""
    program = (
        "from campaign import Scenario, play\n"
        "for seed in range(6):\n"
        "    print(play(Scenario.of(seed)).trace.hexdigest())\n"
    )
    histories = set()
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            env=child_environment(PYTHONHASHSEED=salt),
            capture_output=True,
            text=True,
            check=True,
        )
        histories.add(done.stdout)
    [history] = histories
    assert len(set(history.split())) == 6


def test_simulation_is_the_same_with_viewers() -> None:
    """They ask between any two events; the broker sends the same messages at the same times."""
    answered = 0
    for seed in range(of_commit(), of_commit() + 30):
        scenario = Scenario.of(seed)
        alone = play(dataclasses.replace(scenario, watched=False))
        watched = play(dataclasses.replace(scenario, watched=True))
        assert watched.viewer is not None
        answered += watched.viewer.answered
        assert watched.trace.hexdigest() == alone.trace.hexdigest(), seed
        assert (watched.done, watched.told) == (alone.done, alone.told), seed
    assert answered > 1000
