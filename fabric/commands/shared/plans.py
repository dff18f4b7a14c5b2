"""Opens the definitions, the graph and the plan of the system that a user names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.client.project import Project
from fabric.config import Settings, built_architectures
from fabric.definitions.graph import Graph, Step
from fabric.definitions.select import find, find_built, needed
from fabric.errors import DefinitionsError, FabricError, Problem, command, suggest
from fabric.host.files import real
from fabric.host.terminal import progress, settled
from fabric.jobs import tools_among
from fabric.plan import Plan
from fabric.trove.sources.resolve import Sources

if TYPE_CHECKING:
    from fabric.client.edits import Edit
    from fabric.trove.sources.snapshot import Snapshot

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
    settings: Settings,
    system: str,
    names: list[str],
    *,
    locked: bool = False,
    clean: bool = False,
    again: Sequence[str] = (),
    project: Project | None = None,
) -> tuple[Project, Plan]:
    """The project and the plan of a system; its goals are the steps called ``names``.

    ``locked``: SourceError if the definitions do not pin a source that the goals need.
    ``clean``: edited chunks are built in clean trees.
    ``again``: names of chunks and systems that are goals besides.
    ``project``: that of the system, if it is open already.
    """
    project = project or open_project(settings, system)
    if project.edits:
        project.edits.begin(names)  # git reads the work trees while the definitions are loaded
    graph = project.graph(project.locate(system, Path.cwd()))
    project.keeps_trees = project.keeps_trees and not clean
    goals = tuple(dict.fromkeys(step for name in names for step in find(graph, name)))
    if again:
        besides = find_built(graph, again)
        goals = tuple(dict.fromkeys((*(goals or (graph.root.id,)), *besides)))
    if locked:
        project.require_pins(graph, goals)
    return project, plan_of(project, graph, goals)


def report_edits(project: Project, graph: Graph, goals: Iterable[str] = ()) -> None:
    """Print a line that names the edited chunks that the goals need."""
    if edits := edits_of(project, graph, goals):
        progress("edited: " + ", ".join(f"{one.chunk} in {one.shown}" for one in edits))


def edits_of(project: Project, graph: Graph, goals: Iterable[str] = ()) -> list[Edit]:
    """The edited chunks that the goals need."""
    if not project.edits:
        return []
    ids = needed(graph, tuple(goals) or (graph.root.id,))
    names = {step.name for step in graph.steps if step.kind == "chunk" and step.id in ids}
    return [one for name, one in project.edits.by_name.items() if name in names]


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
        tree = take_snapshot(project)[2]
        by_name = project.last_keys(graph.path, tree)
        names_of = {step.id: f"{step.kind} {step.name}" for step in graph.steps}
        keys = {id: by_name[name] for id, name in names_of.items() if name in by_name}
        chosen = goals or (graph.root.id,)
        if keys.keys() >= set(chosen):
            return project, Plan(graph, chosen, frozenset(chosen), {}, "", keys)
    return project, plan_of(project, graph, goals)


def take_snapshot(project: Project) -> tuple[Snapshot, dict[str, Snapshot], str]:
    """Snapshots of the definitions and, by name, of the edited chunks, and a text that identifies
    the files of all of them.
    """
    from fabric.trove.sources.build_refs import Builds

    edits = project.edits.snapshots() if project.edits else {}
    builds = Builds(project.settings.trove_dir / "builds.git")
    build = builds.snapshot(project.root, list(edits.values()))
    return build, edits, " ".join([build.tree, *(one.tree for one in edits.values())])


@contextlib.contextmanager
def healing(project: Project, plan: Plan) -> Iterator[None]:
    """Remove goals that turn out damaged from the store, so that they are built again."""
    from fabric.commands.shared.keys import mending

    goals = [plan.graph[goal] for goal in plan.goals]
    parts = [key for goal in goals if goal.kind == "stratum" for key in plan.depends(goal)]
    names = [goal.name for goal in goals if goal is not plan.graph.root]
    remedy = command("build", plan.graph.path, *names)
    with mending(project.store, (*parts, *plan.goal_keys), remedy):
        yield


def plan_of(
    project: Project, graph: Graph, goals: Iterable[str] = (), sources: Sources | None = None
) -> Plan:
    """The plan of a graph for this machine, or for the farm; ``sources`` as for `Project.plan`."""
    settings = project.settings
    tools = ""
    if settings.controller:
        from fabric.client.controller import open_controller

        with open_controller(settings) as controller:
            workers = controller.query("workers").workers
        tools = tools_among(worker.features for worker in workers)
    plan = project.plan(graph, goals, tools, sources)
    settled()  # imports
    return plan


def find_chunk(settings: Settings, name: str, system: str | None) -> tuple[Project, Plan, Step]:
    """As `find_step`, with the plan of that step."""
    project, graph, step = find_step(settings, name, system)
    return project, plan_of(project, graph, [step.id]), step


def find_step(settings: Settings, name: str, system: str | None) -> tuple[Project, Graph, Step]:
    """The step called ``name``, in the system that `find_steps` chooses."""
    project, graph, found = find_steps(settings, [name], system)
    return project, graph, graph[found[0]]


def find_steps(
    settings: Settings, names: list[str], system: str | None
) -> tuple[Project, Graph, tuple[str, ...]]:
    """Ids of the steps called ``names``, in their order.

    They are in ``system``, else in the last system built, else in the smallest system that has all
    of them and is for this machine's architecture, else in the smallest of another one.
    """
    if system:
        project, graph = open_graph(settings, system)
        return project, graph, _firsts(graph, names)
    project = open_project(settings)
    last = project.last_system()
    unknown: list[Problem] = []
    words: set[str] = set()
    found: dict[tuple[bool, int, str], tuple[Graph, tuple[str, ...]]] = {}
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
            goals = _firsts(graph, names)
        except FabricError:
            words |= {word for step in graph.steps for word in (step.name, *step.artifacts)}
            continue
        foreign = graph.arch not in built_architectures(settings)
        found[foreign, len(graph.steps), candidate] = graph, goals
        if candidate == last:
            break
    if found:
        return project, *found[min(found)]
    name = next((one for one in names if one not in words), ", ".join(names))
    what = "all chunks of these names" if name not in names else "a chunk of that name"
    where = f"in {project.root / 'systems'} has {what}"
    if unknown:
        wrong = f"{name}: no system {where}, and some systems have mistakes:\n"
        raise FabricError(wrong + str(DefinitionsError(unknown)))
    hint = suggest(name, words) or "; name the system with --system"
    raise FabricError(f"{name}: no system {where}{hint}")


def _firsts(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The first step that each name means.  FabricError if there is none."""
    return tuple(find(graph, name)[0] for name in names)
