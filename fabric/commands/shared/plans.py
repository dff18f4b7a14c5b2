"""Opens the definitions, the graph and the plan of the system that a user names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fabric.client.project import Project
from fabric.config import Settings
from fabric.definitions.fields import suggest
from fabric.definitions.graph import Graph, Step
from fabric.definitions.select import find
from fabric.errors import (
    DamagedError,
    DefinitionsError,
    FabricError,
    Problem,
    StoreError,
    command,
)
from fabric.host.files import real
from fabric.host.terminal import progress, settled
from fabric.jobs import tools_among
from fabric.plan import Plan

#: Unpinned sources that the warning of a build names.
UNPINNED_SHOWN = 3


def open_project(settings: Settings, near: str | None = None) -> Project:
    """The project that contains the named system, else the current folder."""
    cwd = Path.cwd()
    start = cwd
    if near and (cwd / near).exists():
        start = real(cwd / near)
    return Project.find(start, settings, progress)


def open_graph(settings: Settings, system: str) -> tuple[Project, Graph]:
    """The project and the graph of a system."""
    project = open_project(settings, system)
    return project, project.graph(project.locate(system, Path.cwd()))


def open_plan(
    settings: Settings, system: str, names: list[str], *, locked: bool = False
) -> tuple[Project, Plan]:
    """The project and the plan of a system; its goals are the steps called ``names``.

    ``locked``: SourceError if the definitions do not pin a source that the goals need.
    """
    project, graph = open_graph(settings, system)
    goals = tuple(dict.fromkeys(step for name in names for step in find(graph, name)))
    if locked:
        project.require_pins(graph, goals)
    return project, plan_of(project, graph, goals)


def report_unpinned(unpinned: list[str]) -> None:
    """Warn in one line about sources that are not pinned."""
    if unpinned:
        names = [" ".join(one.split(" ")[:2]) for one in unpinned[:UNPINNED_SHOWN]]
        more = len(unpinned) - len(names)
        progress(
            f"warning: not pinned by content: {', '.join(names)}"
            + (f" and {more} more" if more > 0 else "")
            + "; --locked makes this an error"
        )


def open_built(
    settings: Settings, system: str, names: list[str], *, locked: bool = False
) -> tuple[Project, Plan]:
    """`open_plan` for built goals.  If a farm built them, the plan has only their keys."""
    project, graph = open_graph(settings, system)
    goals = tuple(dict.fromkeys(step for name in names for step in find(graph, name)))
    if locked:
        project.require_pins(graph, goals)
    if settings.controller:
        from fabric.trove.sources.build_refs import Builds

        tree = Builds(settings.trove_dir / "builds.git").snapshot(project.root).tree
        by_name = project.last_keys(graph.path, tree)
        names_of = {step.id: f"{step.kind} {step.name}" for step in graph.steps}
        keys = {id: by_name[name] for id, name in names_of.items() if name in by_name}
        chosen = goals or (graph.root.id,)
        if keys.keys() >= set(chosen):
            return project, Plan(graph, chosen, frozenset(chosen), {}, "", keys)
    return project, plan_of(project, graph, goals)


@contextlib.contextmanager
def healing(project: Project, plan: Plan) -> Iterator[None]:
    """Remove goals that turn out damaged from the store, so that they are built again."""
    try:
        yield
    except DamagedError as error:
        from fabric.trove.artifacts.health import Health

        goals = [plan.graph[goal] for goal in plan.goals]
        parts = [key for goal in goals if goal.kind == "stratum" for key in plan.depends(goal)]
        names = [goal.name for goal in goals if goal is not plan.graph.root]
        try:
            Health(project.store).mend((*parts, *plan.goal_keys), read=True)
        except StoreError as unremoved:
            raise StoreError(f"{error}; it cannot be removed: {unremoved}") from None
        raise DamagedError(f"{error}: {command('build', plan.graph.path, *names)}") from None


def plan_of(project: Project, graph: Graph, goals: Iterable[str] = ()) -> Plan:
    """The plan of a graph for this machine, or for the farm."""
    settings = project.settings
    tools = ""
    if settings.controller:
        from fabric.client.controller import open_controller

        with open_controller(settings) as controller:
            workers = controller.query("workers").workers
        tools = tools_among(worker.features for worker in workers)
    plan = project.plan(graph, goals, tools)
    settled()  # imports
    return plan


def find_chunk(settings: Settings, name: str, system: str | None) -> tuple[Project, Plan, Step]:
    """The step called ``name``: in ``system``, else in the last system built, else in any."""
    if system:
        project, plan = open_plan(settings, system, [name])
        return project, plan, plan.graph[plan.goals[0]]
    project = open_project(settings)
    last = project.last_system()
    unknown: list[Problem] = []
    words: set[str] = set()
    candidates = [last] if last else []
    candidates += [one for one in project.systems() if one != last]
    for candidate in candidates:
        try:
            graph = project.graph(candidate)
        except DefinitionsError as error:
            unknown += error.problems
            continue
        except FabricError:
            continue
        try:
            goals = find(graph, name)
        except FabricError:
            words |= {word for step in graph.steps for word in (step.name, *step.artifacts)}
            continue
        plan = plan_of(project, graph, goals[:1])
        return project, plan, graph[goals[0]]
    where = f"in {project.root / 'systems'} has a chunk of that name"
    if unknown:
        wrong = f"{name}: no system {where}, and some systems have mistakes:\n"
        raise FabricError(wrong + str(DefinitionsError(unknown)))
    hint = suggest(name, words) or "; name the system with --system"
    raise FabricError(f"{name}: no system {where}{hint}")
