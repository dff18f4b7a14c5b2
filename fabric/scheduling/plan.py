"""What a request asks for: is it sound, and how far is each of its steps from the end?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping

from fabric.wire.messages import BuildGraph, StepSpec

#: Steps looked at before others have their turn.
PORTION = 2000


class Unsound(ValueError):
    """A request makes no sense, and why."""


def study(
    submit: BuildGraph, expected: Callable[[StepSpec], float]
) -> Generator[None, None, tuple[dict[str, StepSpec], dict[str, float]]]:
    """A request's steps by their keys, and their ranks: the seconds from the start of each to the
    end of all, along the longest path upwards.  The larger, the sooner it should be built.

    Yields after each `PORTION`.  Unsound if steps are missing, or need each other in a circle.
    """
    offers: dict[str, StepSpec] = {}
    for offer in submit.steps:
        if offer.key in offers:
            raise Unsound(f"{offer.name}: its key is also that of {offers[offer.key].name}")
        offers[offer.key] = offer
        if len(offers) % PORTION == 0:
            yield
    for goal in (*submit.goals, *submit.along):
        if goal not in offers:
            raise Unsound(f"the goal {goal[:80]!r} is not one of the request's steps")
    dependents = dict.fromkeys(offers, 0)
    for number, offer in enumerate(submit.steps, 1):
        for key in offer.depends:
            if key not in dependents:
                missing = f"{key[:80]!r}, which the request does not have"
                raise Unsound(f"{offer.name}: it depends on {missing}")
            dependents[key] += 1
        if number % PORTION == 0:
            yield
    ranks = dict.fromkeys(offers, 0.0)
    above = [key for key, count in dependents.items() if count == 0]
    for number, key in enumerate(above, 1):  # grows as it goes: each after all that depend on it
        offer = offers[key]
        rank = ranks[key] = ranks[key] + expected(offer)
        for dependency in offer.depends:
            ranks[dependency] = max(ranks[dependency], rank)
            dependents[dependency] -= 1
            if dependents[dependency] == 0:
                above.append(dependency)
        if number % PORTION == 0:
            yield
    if len(above) < len(offers):
        names = " -> ".join(_circle(offers, above))
        raise Unsound(f"steps depend on each other in a circle: {names}")
    return offers, ranks


def _circle(offers: Mapping[str, StepSpec], above: Collection[str]) -> list[str]:
    """Names along one circle, the first again at the end; ``above`` are in none, nor below one."""
    seated = set(above)
    loose = {key: offer for key, offer in offers.items() if key not in seated}
    # Downwards there may be dead ends, upwards there are none: everything loose has a
    # dependent that is loose too, or it would be above.
    dependent = {d: key for key, offer in loose.items() for d in offer.depends}
    key = next(iter(loose))
    path: dict[str, int] = {}
    while key not in path:
        path[key] = len(path)
        key = dependent[key]
    names = [offers[k].name for k, at in path.items() if at >= path[key]]
    return [*reversed(names), names[-1]]
