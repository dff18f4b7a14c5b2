"""Many scenarios, played on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
from rare import WANTED
from scenarios import Scenario
from shrink import differences, shrink
from simulator import Simulation

#: Seeds that a process plays before it tells.
CHUNK = 25


class Campaign(msgspec.Struct):
    """What came of some seeds."""

    counts: Counter[str] = msgspec.field(default_factory=Counter)  # scenarios, events, builds ...
    faults: Counter[str] = msgspec.field(default_factory=Counter)  # injected, by kind
    happened: Counter[str] = msgspec.field(default_factory=Counter)  # of what is rare
    violations: list[int] = []  # seeds

    @property
    def never(self) -> list[str]:
        """What is rare, and should have happened."""
        return [what for what in WANTED if not self.happened[what]]


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


def wrong_with(scenario: Scenario) -> str:
    """What `play` tells that went wrong; "" if nothing did."""
    try:
        play(scenario)
    except AssertionError as error:
        return str(error)
    return ""


def processes(begin: Callable[..., None], *args: object) -> ProcessPoolExecutor:
    """One for each core, which first calls ``begin``: that is to end with ``gc.freeze()``, for to
    look for garbage in what stays takes long.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count(), spawn, initializer=begin, initargs=args)


def play_all(first: int, count: int, most: int = 0) -> Campaign:
    """Play ``count`` seeds, and then up to ``most`` until all that is rare has happened.

    What is played does not depend on the machine.
    """
    campaign = Campaign()
    most = max(count, most)
    starts = range(first, first + most, CHUNK)
    ends = [min(start + CHUNK, first + most) for start in starts]
    with processes(gc.freeze) as pool:
        for part in pool.map(_play_some, starts, ends):
            campaign.counts += part.counts
            campaign.faults += part.faults
            campaign.happened += part.happened
            campaign.violations += part.violations
            enough = campaign.counts["scenarios"] >= count
            if enough and (campaign.violations or not campaign.never):
                pool.shutdown(cancel_futures=True)
                break
    return campaign


def _play_some(first: int, end: int) -> Campaign:
    found = Campaign()
    for seed in range(first, end):
        found.counts["scenarios"] += 1
        try:
            simulation = play(Scenario.of(seed))
        except AssertionError:
            found.violations.append(seed)
        else:
            found.counts += simulation.counts
            found.faults += simulation.faults
            found.happened += simulation.happened
    return found


def told(seed: int) -> str:
    """The story of a seed that went wrong, made as short as it can be."""
    scenario = shrink(Scenario.of(seed), lambda smaller: bool(wrong_with(smaller)))
    if wrong := wrong_with(scenario):
        return f"seed {seed}, made small: {differences(scenario)}\n\n{wrong}"
    return f"seed {seed} went wrong once, and then did not"
