"""Computes on a graph of steps, given as the numbers of the steps that each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Dag(NamedTuple):
    """A graph without circles."""

    depends: list[list[int]]  # for each node, those that it needs
    order: list[int]  # all nodes, each after those that it needs

    @property
    def dependents(self) -> list[list[int]]:
        """For each node, those that need it."""
        found: list[list[int]] = [[] for _ in self.depends]
        for node in self.order:
            for dep in self.depends[node]:
                found[dep].append(node)
        return found


def acyclic(depends: Sequence[Sequence[int]]) -> Dag:
    """The graph without the edges that close a circle, are given twice, or lead nowhere."""
    count = len(depends)
    rank = [-1] * count
    order: list[int] = []
    for root in range(count):
        stack = [(root, iter(depends[root]))] if rank[root] == -1 else []
        if stack:
            rank[root] = count  # it is on the stack
        while stack:
            node, rest = stack[-1]
            for dep in rest:
                if 0 <= dep < count and rank[dep] == -1:
                    rank[dep] = count
                    stack.append((dep, iter(depends[dep])))
                    break
            else:
                rank[node] = len(order)
                order.append(node)
                stack.pop()
    kept = [
        [dep for dep in dict.fromkeys(needs) if 0 <= dep < count and rank[dep] < rank[node]]
        for node, needs in enumerate(depends)
    ]
    return Dag(kept, order)


def reduced(dag: Dag, shown: Sequence[bool]) -> Dag:
    """The transitive reduction over the shown nodes: the fewest edges with the same ancestors.

    Paths through hidden nodes count; hidden nodes have no edges.  Sets of nodes are integers, one
    bit for each: their operations are quick.
    """
    count = len(dag.order)
    rank = [0] * count
    visible = 0
    for place, node in enumerate(dag.order):
        rank[node] = place
        visible |= shown[node] << place
    everything = visible == (1 << count) - 1
    below = [0] * count  # by rank: all that a node needs
    kept: list[list[int]] = [[] for _ in dag.order]

    def peel(left: int) -> tuple[list[int], int]:
        """The nodes that no other one of them needs, and all that they need with them."""
        near, covered = [], 0
        while left:
            top = left.bit_length() - 1
            near.append(dag.order[top])
            covered |= below[top] | 1 << top
            left &= ~covered
        return near, covered

    for place, node in enumerate(dag.order):
        near, covered = peel(_bits([rank[dep] for dep in dag.depends[node]], place))
        below[place] = covered
        if shown[node]:
            kept[node] = near if everything else peel(covered & visible)[0]
    return Dag(kept, dag.order)


def _bits(places: list[int], count: int) -> int:
    """An integer with these bits.  Text is the quickest way for many of them."""
    if not places:
        return 0
    digits = bytearray(b"0") * count
    for place in places:
        digits[-1 - place] = 49
    return int(digits, 2)


def longest_path(dag: Dag, weight: Callable[[int], float]) -> list[int]:
    """The nodes of a path with the greatest sum of weights, which are not negative."""
    total = [0.0] * len(dag.order)
    before = [-1] * len(dag.order)
    last = -1
    for node in dag.order:
        best = max(dag.depends[node], key=total.__getitem__, default=-1)
        before[node] = best
        total[node] = weight(node) + (total[best] if best >= 0 else 0.0)
        if last < 0 or total[node] > total[last]:
            last = node
    path = []
    while last >= 0:
        path.append(last)
        last = before[last]
    return path[::-1]


def is_path(dag: Dag, nodes: Sequence[int]) -> bool:
    """Whether each node needs the one before it."""
    return all(before in dag.depends[node] for before, node in pairwise(nodes))
