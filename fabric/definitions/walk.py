"""Walks graphs that may have cycles: depth first, without recursion, in a stable order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

Node = TypeVar("Node")


def postorder(
    graph: Mapping[Node, Sequence[Node]], roots: Iterable[Node]
) -> tuple[list[Node], list[list[Node]]]:
    """All nodes that are reachable from ``roots``, each after its successors; and the cycles found.

    ``graph`` maps a node to its successors.  A cycle is a path whose last node is its first; the
    order ignores the edges that close a cycle.
    """
    order: list[Node] = []
    found: list[list[Node]] = []
    done: set[Node] = set()
    for root in roots:
        if root in done:
            continue
        path: dict[Node, Iterator[Node]] = {root: iter(graph[root])}  # insertion order: the path
        while path:
            node = next(reversed(path))
            for following in path[node]:
                if following in path:
                    nodes = list(path)
                    found.append([*nodes[nodes.index(following) :], following])
                elif following not in done:
                    path[following] = iter(graph[following])
                    break
            else:
                del path[node]
                done.add(node)
                order.append(node)
    return order, found


def cycles(graph: Mapping[Node, Sequence[Node]]) -> list[list[Node]]:
    """The cycles that `postorder` finds in a graph."""
    return postorder(graph, graph)[1]
