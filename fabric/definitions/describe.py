"""Describes a build graph as data for JSON, as a text tree, and for Graphviz."""

from __future__ import annotations

from typing import Any

from fabric.definitions.graph import Graph, Step
from fabric.errors import without_secrets


def describe(graph: Graph) -> dict[str, Any]:
    """The graph as data for JSON: all steps, each after its dependencies."""
    return {
        "system": graph.system,
        "arch": graph.arch,
        "steps": [_describe(step) for step in graph.steps],
    }


def _describe(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "kind": step.kind,
        "name": step.name,
        "strata": list(step.strata),
        "repo": without_secrets(step.repo),
        "ref": step.ref,
        "morph": step.morph,
        "build_system": step.build_system,
        "mode": step.mode if step.kind == "chunk" else "",
        "build_only": step.build_only,
        "prefix": step.prefix if step.kind == "chunk" else "",
        "depends": list(step.depends),
        "staged": list(step.staged),
        "path_prefixes": list(step.path_prefixes),
        "in_system": step.in_system,
    }


def tree(graph: Graph) -> str:
    """The system, its strata and their chunks as a text tree, in build order."""
    place = {step.id: number for number, step in enumerate(graph.steps)}
    lines = [f"{graph.system} ({graph.arch})"]
    strata = [step for step in graph.steps if step.kind == "stratum"]
    for stratum in strata:
        last = stratum is strata[-1]
        below = [graph[one] for one in stratum.depends]
        notes = _needs([step for step in below if step.kind == "stratum"])
        notes += [] if stratum.in_system else ["not in the system"]
        lines.append(_branch("", last) + _noted(stratum.name, notes))
        chunks = sorted(
            (step for step in below if step.kind == "chunk"), key=lambda step: place[step.id]
        )
        for chunk in chunks:
            below = [graph[one] for one in chunk.depends]
            own = [step for step in below if step.kind == "chunk" or step.id not in stratum.depends]
            notes = _needs(own)
            notes += [] if chunk.mode == "staging" else [chunk.mode]
            notes += ["build-only"] if chunk.build_only and chunk.mode != "bootstrap" else []
            trunk = "    " if last else "│   "
            lines.append(_branch(trunk, chunk is chunks[-1]) + _noted(chunk.name, notes))
    return "\n".join(lines) + "\n"


def _branch(trunk: str, last: bool) -> str:
    return trunk + ("└── " if last else "├── ")


def _needs(steps: list[Step]) -> list[str]:
    return [f"needs {', '.join(step.name for step in steps)}"] if steps else []


def _noted(name: str, notes: list[str]) -> str:
    return f"{name}  ({'; '.join(notes)})" if notes else name


def dot(graph: Graph) -> str:
    """The graph in Graphviz's language: a cluster for each stratum, arrows to dependencies.

    A chunk of two strata is drawn in the first.  Steps that are not in the system are dashed.
    """
    lines = [
        f"digraph {_quoted(graph.system)} {{",
        "  rankdir=LR; node [shape=box];",
    ]
    drawn: set[str] = set()
    for number, stratum in enumerate(step for step in graph.steps if step.kind == "stratum"):
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(stratum.name)};"]
        for node in (stratum.id, *stratum.depends):
            step = graph[node]
            if node not in drawn and (step is stratum or step.kind == "chunk"):
                drawn.add(node)
                shape = "" if step.kind == "chunk" else ", shape=ellipse"
                style = "" if step.in_system else ", style=dashed"
                lines.append(f"    {_quoted(node)} [label={_quoted(step.name)}{shape}{style}];")
        lines.append("  }")
    root = graph.root
    lines.append(f"  {_quoted(root.id)} [label={_quoted(root.name)}, shape=doubleoctagon];")
    for step in graph.steps:
        lines += [f"  {_quoted(step.id)} -> {_quoted(node)};" for node in step.depends]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
