"""Steps with equal keys have equal dependencies."""

from __future__ import annotations

from itertools import combinations

from definitions_kit import loaded, small, spec, stratum, system

from fabric.definitions.graph import Graph
from fabric.definitions.select import needed
from fabric.jobs import Source
from fabric.plan import Plan
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import PROTOCOL, BuildGraph, StepSpec

WHOLE = "name: core, morph: strata/core.morph"
PART = f"{WHOLE}, artifacts: [core-runtime]"


def graph(takes: str) -> Graph:
    files = small(core=stratum("core", spec("zlib")))
    return loaded(files | {"systems/s.morph": system(takes)})


def plan(graph: Graph, goals: tuple[str, ...]) -> Plan:
    source = Source("upstream:x", "r", "f" * 40, "e" * 40)
    sources = {step.id: source for step in graph.steps if step.kind == "chunk"}
    return Plan(graph, goals, needed(graph, goals), sources, "tools")


def submit(plan: Plan, request: str) -> BuildGraph:
    return BuildGraph(PROTOCOL, request, "t", plan.step_specs(), plan.goal_keys, along=plan.along)


def plans() -> list[Plan]:
    """Every choice of goals, for systems that take a stratum as a whole and in part."""
    found = []
    for takes in (WHOLE, PART):
        made = graph(takes)
        ids = [step.id for step in made.steps]
        for number in range(1, len(ids) + 1):
            found += [plan(made, goals) for goals in combinations(ids, number)]
    return found


def test_depends_is_equal_for_equal_keys_and_any_goals() -> None:
    known: dict[str, StepSpec] = {}
    for each in plans():
        for offer in each.step_specs():
            first = known.setdefault(offer.key, offer)
            assert (offer.depends, offer.needs) == (first.depends, first.needs), offer.name


def test_depends_lets_requests_share_steps() -> None:
    scheduler = Scheduler(now=0.0)
    for number, each in enumerate(plans()):
        request = f"r{number}"
        scheduler.handle(submit(each, request), 1.0)
        update = scheduler.update(request, 0, 1.0)
        assert update is not None
        assert (update.state, update.message) == ("checking", "")
        assert set(update.goals) == set(each.goal_keys)


def test_along_has_strata_taken_as_a_whole() -> None:
    whole, part = (graph(takes) for takes in (WHOLE, PART))
    [core] = [step.id for step in whole.steps if step.kind == "stratum"]
    made = plan(whole, (whole.root.id,))
    assert made.along == (made.keys[core],)
    assert plan(part, (part.root.id,)).along == ()
    assert plan(whole, (whole.root.id, core)).along == ()
