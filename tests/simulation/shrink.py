"""Makes a failing scenario smaller: fewer steps, workers, requests and faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from scenarios import Scenario

#: Scenarios that are tried, at most.
TRIES = 400
#: The least that a number can be, if that is not zero.
_LEAST = {"steps": 1, "workers": 1, "slots": 1, "requests": 1}
#: Numbers that mean something else than more or less trouble.
_KEPT = {"seed", "lease", "keep_going", "fail_fast", "orders", "log_memory", "log_disk"}


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """The smallest scenario found that still ``fails``, in `TRIES` tries."""
    tries = 0
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(scenario):
            tries += 1
            if tries > TRIES:
                return scenario
            if fails(candidate):
                scenario, smaller = candidate, True
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with one number less: at once as small as it can be, then half, then one less."""
    for field in dataclasses.fields(scenario):
        value = getattr(scenario, field.name)
        if field.name in _KEPT or isinstance(value, bool):
            continue
        least = _LEAST.get(field.name, 0)
        steps = [least, (value + least) / 2] if isinstance(value, float) else []
        if isinstance(value, int):
            steps = [least, (value + least) // 2, value - 1]
        if field.name == "trouble":
            steps = [5.0, 20.0]
        for less in dict.fromkeys(steps):
            if least <= less < value - 0.001:
                smaller: dict[str, Any] = {field.name: less}
                yield dataclasses.replace(scenario, **smaller)


def differences(scenario: Scenario) -> str:
    """What a scenario has other than its seed would give, for a regression test."""
    usual = Scenario.of(scenario.seed)
    found = {
        field.name: getattr(scenario, field.name)
        for field in dataclasses.fields(scenario)
        if getattr(scenario, field.name) != getattr(usual, field.name)
    }
    return ", ".join(f"{name}={value!r}" for name, value in found.items())
