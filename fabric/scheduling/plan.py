"""Validates a submitted build graph, and ranks its steps by the work above each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping

from fabric.wire.messages import BuildGraph, GraphStep, StepSpec

#: Steps that are looked at before other events have their turn.
PORTION = 2000
#: Goes on with a request's validation by a portion.
Validation = Iterator[None]


class InvalidGraph(ValueError):
    """A build graph makes no sense, and why."""


def validate(
    graph: BuildGraph, expected: Callable[[StepSpec], float]
) -> Generator[None, None, tuple[dict[str, StepSpec], dict[str, float], list[GraphStep]]]:
    """Returns the steps by key, their ranks by key, and the graph that viewers see.

    The rank of a step is the number of seconds from its start to the end of the request, along the
    longest path upwards; steps with larger ranks are built sooner.  ``expected`` gives the seconds
    that a step should take.  Yields after each `PORTION`.  Raises InvalidGraph if keys are not
    unique, steps are missing, or steps depend on each other in a circle.
    """
    specs: dict[str, StepSpec] = {}
    for spec in graph.steps:
        if spec.key in specs:
            raise InvalidGraph(f"{spec.name}: its key is also that of {specs[spec.key].name}")
        specs[spec.key] = spec
        if len(specs) % PORTION == 0:
            yield
    for goal in (*graph.goals, *graph.along):
        if goal not in specs:
            raise InvalidGraph(f"the goal {goal[:80]!r} is not one of the request's steps")
    dependents = dict.fromkeys(specs, 0)
    places = {key: place for place, key in enumerate(specs)}
    shown: list[GraphStep] = []
    for number, spec in enumerate(graph.steps, 1):
        for key in spec.depends:
            if key not in dependents:
                missing = f"{key[:80]!r}, which the request does not have"
                raise InvalidGraph(f"{spec.name}: it depends on {missing}")
            dependents[key] += 1
        below = tuple([places[key] for key in spec.depends])
        shown.append(GraphStep(spec.key, spec.name, spec.kind, below))
        if number % PORTION == 0:
            yield
    ranks = dict.fromkeys(specs, 0.0)
    above = [key for key, count in dependents.items() if count == 0]
    for number, key in enumerate(above, 1):  # grows meanwhile: each after all that depend on it
        spec = specs[key]
        rank = ranks[key] = ranks[key] + expected(spec)
        for dependency in spec.depends:
            ranks[dependency] = max(ranks[dependency], rank)
            dependents[dependency] -= 1
            if dependents[dependency] == 0:
                above.append(dependency)
        if number % PORTION == 0:
            yield
    if len(above) < len(specs):
        names = " -> ".join(_circle(specs, above))
        raise InvalidGraph(f"steps depend on each other in a circle: {names}")
    return specs, ranks, shown


def _circle(specs: Mapping[str, StepSpec], above: Collection[str]) -> list[str]:
    """Names along one circle, the first again at the end; ``above`` are in none, nor below one."""
    ranked = set(above)
    rest = {key: spec for key, spec in specs.items() if key not in ranked}
    # Downwards there may be dead ends, upwards there are none: every step of the rest has a
    # dependent in the rest, or it would be ranked.
    dependent = {d: key for key, spec in rest.items() for d in spec.depends}
    key = next(iter(rest))
    path: dict[str, int] = {}
    while key not in path:
        path[key] = len(path)
        key = dependent[key]
    names = [specs[k].name for k, at in path.items() if at >= path[key]]
    return [*reversed(names), names[-1]]
