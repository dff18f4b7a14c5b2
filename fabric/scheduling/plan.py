"""What a request asks for: is it sound, and how far is each of its steps from the end?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fabric.wire.messages import Offer, Submit

_KEY = re.compile(r"[0-9a-f]{64}\Z")


def problem(submit: Submit) -> str:
    """What is wrong with a request, or "" if nothing is."""
    offers: dict[str, Offer] = {}
    for offer in submit.steps:
        if not _KEY.match(offer.key):
            return f"{offer.name}: its key {offer.key[:80]!r} is not 64 hexadecimal digits"
        if offer.key in offers:
            return f"{offer.name}: its key is also that of {offers[offer.key].name}"
        offers[offer.key] = offer
    for goal in submit.goals:
        if goal not in offers:
            return f"the goal {goal[:80]!r} is not one of the request's steps"
    for offer in submit.steps:
        for key in offer.depends:
            if key not in offers:
                return f"{offer.name}: it depends on {key[:80]!r}, which the request does not have"
    if len(order(offers)) < len(offers):
        return "steps depend on each other in a circle: " + " -> ".join(_circle(offers))
    return ""


def order(offers: Mapping[str, Offer]) -> list[str]:
    """Keys, each after all that depend on it; those of a circle, and below one, are left out."""
    dependents = dict.fromkeys(offers, 0)
    for offer in offers.values():
        for key in offer.depends:
            dependents[key] += 1
    ordered = [key for key, count in dependents.items() if count == 0]
    for key in ordered:  # grows as it goes
        for dependency in offers[key].depends:
            dependents[dependency] -= 1
            if dependents[dependency] == 0:
                ordered.append(dependency)
    return ordered


def ranks(offers: Mapping[str, Offer], expected: Callable[[Offer], float]) -> dict[str, float]:
    """Seconds from the start of each step to the end of all, along the longest path upwards.

    The larger, the sooner it should be built.
    """
    above = dict.fromkeys(offers, 0.0)
    for key in order(offers):
        offer = offers[key]
        rank = above[key] = above[key] + expected(offer)
        for dependency in offer.depends:
            if above[dependency] < rank:
                above[dependency] = rank
    return above


def _circle(offers: Mapping[str, Offer]) -> list[str]:
    """Names along one circle, the first again at the end."""
    seated = set(order(offers))
    loose = {key: offer for key, offer in offers.items() if key not in seated}
    # Downwards there may be dead ends, upwards there are none: everything loose has a
    # dependent that is loose too, or it would have been seated.
    dependent = {d: key for key, offer in loose.items() for d in offer.depends}
    key = next(iter(loose))
    path: dict[str, int] = {}
    while key not in path:
        path[key] = len(path)
        key = dependent[key]
    names = [offers[k].name for k, at in path.items() if at >= path[key]]
    return [*reversed(names), names[-1]]
