"""What a goal needs, and which steps a name means."""

from __future__ import annotations

from collections.abc import Iterable

from fabric.definitions.fields import suggest
from fabric.definitions.graph import Graph, Step
from fabric.errors import FabricError, command


def needed(graph: Graph, goals: Iterable[str]) -> frozenset[str]:
    """Ids of the steps that must be there to have ``goals`` (step ids), these included.

    - A chunk needs the chunks of its staging area.  Lists of what is in a stratum help no build,
      so other strata are no need of it, and neither are chunks it never sees.
    - A stratum needs the chunks that are in it.
    - A system needs the chunks that are in the stratum artifacts it takes.  A stratum of which it
      takes every artifact is a need too; one that it takes in part is not, for nothing asks for
      its other chunks (`fabric.definitions.keys.list_key` names the part).
    """
    found: set[str] = set()
    todo = list(goals)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(_needs(graph, graph[node]))
    return frozenset(found)


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

    Several if a chunk and its stratum, or two chunks, are called the same: chunks stand before
    strata.  `FabricError`, with what is close, if there is none.
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
