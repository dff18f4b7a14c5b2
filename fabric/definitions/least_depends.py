"""Computes the smallest ``build-depends`` of a chunk, from the staged chunks that it uses."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from fabric.definitions.graph import Graph, Step


class Least(NamedTuple):
    """The chunks in a staging area that a build does not need, and the dependencies that do."""

    unused: tuple[str, ...]  # names
    listed: tuple[str, ...]  # ids of the chunks that the dependencies name
    build_depends: list[Any]  # the field's value: names, and mappings for other strata


def least_depends(graph: Graph, step: Step, used: Collection[str]) -> Least:
    """The smallest dependencies of a chunk that uses the staged chunks ``used`` (step ids).

    A chunk that another listed one needs is staged as well, so it is not listed, unless the other
    one leaves it behind.  If the chunk needs none of other strata, the result is enough in a
    stratum that build-depends on none.
    """
    own = f"stratum:{_stratum(step)}"
    mine = set(graph[own].depends)
    needed = [one for one in step.staged if one in used]
    through = [one for one in needed if step.seeded or not graph[one].seeded]
    below = {under for one in through for under in graph[one].staged}
    covered = below.union(needed).intersection(step.staged)
    listed = [one for one in needed if one not in below]
    if mine.issuperset(listed):  # without an entry, the stratum's own list would apply
        listed += [one for one in step.staged if one in covered and one not in mine][:1]
    strata: dict[str, list[str]] = {}
    for one in listed:
        if one not in mine:
            strata.setdefault(_stratum(graph[one]), []).append(graph[one].name)
    entries: list[Any] = [graph[one].name for one in listed if one in mine]
    for path, names in strata.items():
        whole = _reachable(graph, f"stratum:{path}") <= covered
        entries.append({"stratum": path} | ({} if whole else {"chunks": names}))
    unused = tuple(graph[one].name for one in step.staged if one not in covered)
    return Least(unused, tuple(listed), entries)


def _stratum(step: Step) -> str:
    return step.where.rpartition(":")[0]


def _reachable(graph: Graph, node: str) -> set[str]:
    """The chunks below a stratum that a chunk of another stratum sees."""
    found: set[str] = set()
    todo = [node]
    while todo:
        for below in graph[todo.pop()].depends:
            if below not in found:
                found.add(below)
                todo.append(below)
    return {one for one in found if graph[one].kind == "chunk" and not graph[one].build_only}
