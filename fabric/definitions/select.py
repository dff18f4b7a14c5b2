"""Finds the steps that a name means, and the steps that goals need."""

from __future__ import annotations

from collections.abc import Iterable

from fabric.definitions.graph import Graph, Step
from fabric.errors import FabricError, command, suggest


def needed(graph: Graph, goals: Iterable[str]) -> frozenset[str]:
    """Ids of the goals and of all steps that they need; ``goals`` are step ids.

    - A chunk needs the chunks of its staging area.  It needs no strata, because no build reads
      their lists.
    - A stratum needs the chunks in its artifacts.
    - A system needs the chunks in the stratum artifacts that it takes.  It also needs the strata of
      which it takes every artifact.  A stratum that it takes in part is not needed, because its
      other chunks are not.
    """
    found: set[str] = set()
    todo = list(goals)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(_needs(graph, graph[node]))
    return frozenset(found)


def needing(graph: Graph, steps: Iterable[str]) -> frozenset[str]:
    """Ids of the steps, and of all steps that need one of them."""
    above: dict[str, list[str]] = {}
    for step in graph.steps:
        for below in _needs(graph, step):
            above.setdefault(below, []).append(step.id)
    found: set[str] = set()
    todo = list(steps)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(above.get(node, ()))
    return frozenset(found)


def uppermost(graph: Graph, steps: Iterable[str]) -> tuple[str, ...]:
    """Those of the steps that no other of them needs directly."""
    among = dict.fromkeys(steps)
    below = {each for node in among for each in _needs(graph, graph[node])}
    return tuple(node for node in among if node not in below)


def _needs(graph: Graph, step: Step) -> Iterable[str]:
    if step.kind == "chunk":
        return step.staged
    if step.kind == "stratum":
        return (chunk for content in step.lists.values() for chunk, _ in content)
    chunks = [chunk for node, name in step.contents for chunk, _ in graph[node].lists[name]]
    taken = set(step.contents)
    whole = (
        node
        for node in step.depends
        if all((node, artifact) in taken for artifact in graph[node].artifacts)
    )
    return (*chunks, *whole)


def find(graph: Graph, name: str) -> tuple[str, ...]:
    """Ids of the steps that ``name`` means: a step's name, id or file, else an artifact.

    There are several if steps have the same name: chunks come before strata.  FabricError, with
    similar names, if there is none.
    """
    found: list[str] = []
    if name:
        found = [step.id for step in graph.steps if name in (step.id, step.name, step.morph)]
        found = found or [
            step.id for step in graph.steps if name in (step.source_name, *step.artifacts)
        ]
    if found:
        return tuple(found)
    words = {word for step in graph.steps for word in (step.name, *step.artifacts)}
    hint = suggest(name, words) or f"; `{command('graph', graph.path)}` lists all"
    raise FabricError(f"{graph.system} has no chunk, stratum or artifact {name!r}{hint}")


def find_built(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """Ids of the chunks and systems that ``names`` mean.  FabricError if one means only strata."""
    found: list[str] = []
    for name in names:
        built = [step for step in find(graph, name) if graph[step].kind != "stratum"]
        if not built:
            raise FabricError(
                f"{name} is a stratum, which is a list: nothing is built for it; name its chunks"
            )
        found += built
    return tuple(dict.fromkeys(found))
