"""What the sub-commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fabric.config import Settings
from fabric.definitions.graph import Graph, Step
from fabric.definitions.select import find
from fabric.errors import FabricError
from fabric.plan import Plan
from fabric.project import Project


def progress(text: str) -> None:
    """News of imports and the like: on stderr, so that output stays clean."""
    print(text, file=sys.stderr, flush=True)


def open_project(settings: Settings, near: str | None = None) -> Project:
    """The project that a user means: around the system named, else around the current folder."""
    cwd = Path.cwd()
    start = cwd
    if near and (cwd / near).exists():
        start = (cwd / near).resolve()
    return Project.find(start, settings, progress)


def open_graph(settings: Settings, system: str) -> tuple[Project, Graph]:
    """A system's project and graph."""
    project = open_project(settings, system)
    return project, project.graph(project.locate(system, Path.cwd()))


def open_plan(settings: Settings, system: str, names: list[str]) -> tuple[Project, Plan]:
    """A system's project and plan, with what ``names`` name as goals."""
    project, graph = open_graph(settings, system)
    goals = tuple(dict.fromkeys(step for name in names for step in find(graph, name)))
    return project, project.plan(graph, goals)


def find_chunk(settings: Settings, name: str, system: str | None) -> tuple[Project, Plan, Step]:
    """The step called ``name``, in ``system``, else in the first system that has one."""
    if system:
        project, plan = open_plan(settings, system, [name])
        return project, plan, plan.graph[plan.goals[0]]
    project = open_project(settings)
    last = project.last_system()
    candidates = [last] if last else []
    candidates += [one for one in project.systems() if one != last]
    for candidate in candidates:
        try:
            graph = project.graph(candidate)
            goals = find(graph, name)
        except FabricError:
            continue  # another system may have it
        plan = project.plan(graph, goals[:1])
        return project, plan, graph[goals[0]]
    raise FabricError(
        f"{name}: no system in {project.root / 'systems'} has a chunk of that name;"
        " name the system with --system"
    )


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=1)
    print()
