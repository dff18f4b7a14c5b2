"""Places the nodes of a graph in layers, so that each edge leads from a layer to a later one.

After Sugiyama, Tagawa and Toda (1981): layers, then the order within each, then coordinates.  An
edge that passes a layer keeps a lane there; the edges of one node share it as long as they can.

``along`` is the direction of the edges, ``across`` that within a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fabric.web.dag import Dag

Point = tuple[float, float]  # along, across

#: Times that the order and the places are improved, forth and back.
ROUNDS = 4
#: Space between two edges in a layer that they pass.
WIRE = 5.0
#: Passed layers, for each node; longer edges beyond that are drawn straight.
PASSED = 8


class Layout(NamedTuple):
    """Where the nodes are, and how the edges run."""

    places: list[Point]  # the corner of each node next to the origin
    routes: dict[tuple[int, int], list[Point]]  # (needed node, node) -> points
    along: float  # extent
    across: float


def layered(
    sizes: Sequence[Point], dag: Dag, ranks: Sequence[int], *, gap: float, layer_gap: float
) -> Layout:
    """Places nodes of these sizes, in these layers (see `layers`)."""
    if not sizes:
        return Layout([], {}, 0.0, 0.0)
    net = _Net(sizes, dag, ranks, gap)
    _arrange(net)
    centers = _centers(net)
    least = min(one - size[1] / 2 for one, size in zip(centers, sizes, strict=False))
    least = min([least, *centers[len(sizes) :]])
    centers = [one - least for one in centers]

    starts, at = [], 0.0
    depths = [max(sizes[one][0] for one in layer if one < len(sizes)) for layer in net.layers]
    for depth in depths:
        starts.append(at)
        at += depth + layer_gap
    places = [
        (starts[rank], center - size[1] / 2)
        for size, rank, center in zip(sizes, ranks, centers, strict=False)
    ]
    routes = {}
    for node, needed in enumerate(dag.depends):
        for dep in needed:
            points = [(starts[ranks[dep]] + sizes[dep][0], centers[dep])]
            for wire in net.wires[dep][: ranks[node] - ranks[dep] - 1]:
                rank = net.rank[wire]
                points += [
                    (starts[rank], centers[wire]),
                    (starts[rank] + depths[rank], centers[wire]),
                ]
            points.append((starts[ranks[node]], centers[node]))
            routes[dep, node] = points
    across = max(place[1] + size[1] for place, size in zip(places, sizes, strict=True))
    across = max([across, *centers[len(sizes) :]])
    return Layout(places, routes, at - layer_gap, across)


def layers(sizes: Sequence[float], dag: Dag, room: float) -> list[int]:
    """The layer of each node: the first with room for its size after those that it needs."""
    ranks = [0] * len(sizes)
    load: list[float] = []
    for node in dag.order:
        size = sizes[node]
        rank = max((ranks[dep] + 1 for dep in dag.depends[node]), default=0)
        while rank < len(load) and load[rank] and load[rank] + size > room:
            rank += 1
        load += [0.0] * (rank + 1 - len(load))
        load[rank] += size
        ranks[node] = rank
    # What needs nothing moves next to what needs it first.
    dependents = dag.dependents
    for node in dag.order:
        if dag.depends[node] or not dependents[node]:
            continue
        size = sizes[node]
        for rank in range(min(ranks[one] for one in dependents[node]) - 1, ranks[node], -1):
            if load[rank] + size <= room:
                load[ranks[node]] -= size
                load[rank] += size
                ranks[node] = rank
                break
    used = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [used[rank] for rank in ranks]


class _Net:
    """Nodes and, numbered after them, wires: the places of edges in layers that they pass."""

    def __init__(self, sizes: Sequence[Point], dag: Dag, ranks: Sequence[int], gap: float) -> None:
        self.rank = list(ranks)
        self.wires: list[list[int]] = [[] for _ in sizes]  # of each node, in order
        dependents = dag.dependents
        left = PASSED * len(sizes)
        reach = [
            max((ranks[one] for one in dependents[node]), default=0) - ranks[node] - 1
            for node in range(len(sizes))
        ]
        for node in sorted(range(len(sizes)), key=reach.__getitem__):
            left -= max(0, reach[node])
            if left < 0:
                break
            for rank in range(ranks[node] + 1, ranks[node] + 1 + reach[node]):
                self.wires[node].append(len(self.rank))
                self.rank.append(rank)
        count = len(self.rank)
        # Half of what each takes, with its gap.
        self.half = [(size[1] + gap) / 2 for size in sizes]
        self.half += [WIRE / 2] * (count - len(sizes))
        self.before: list[list[int]] = [[] for _ in range(count)]  # neighbours in the layer before
        self.after: list[list[int]] = [[] for _ in range(count)]
        for node, wires in enumerate(self.wires):
            trunk = [node, *wires]
            for one, other in zip(trunk, wires, strict=False):
                self._join(one, other)
            for target in dependents[node]:
                self._join(trunk[min(ranks[target] - ranks[node], len(trunk)) - 1], target)
        self.layers: list[list[int]] = [[] for _ in range(max(self.rank) + 1)]
        for one, rank in enumerate(self.rank):
            self.layers[rank].append(one)

    def _join(self, one: int, other: int) -> None:
        self.after[one].append(other)
        self.before[other].append(one)


def _arrange(net: _Net) -> None:
    """Orders each layer by the mean place of the neighbours, which leaves few crossings."""
    place = [0.0] * len(net.rank)
    for layer in net.layers:
        for index, one in enumerate(layer):
            place[one] = index
    for _ in range(ROUNDS):
        for layers, neighbours in ((net.layers, net.before), (net.layers[::-1], net.after)):
            for layer in layers:
                for one in layer:
                    if near := neighbours[one]:
                        place[one] = sum(place[each] for each in near) / len(near)
                layer.sort(key=place.__getitem__)
                for index, one in enumerate(layer):
                    place[one] = index


def _centers(net: _Net) -> list[float]:
    """The middle of each node, as near to those of its neighbours as the order allows."""
    centers = [0.0] * len(net.rank)
    width = max(2 * sum(net.half[one] for one in layer) for layer in net.layers)
    for layer in net.layers:
        at = 0.0
        for one in layer:
            centers[one] = at + net.half[one]
            at += 2 * net.half[one]
    for _ in range(ROUNDS):
        for layers, neighbours in ((net.layers, net.before), (net.layers[::-1], net.after)):
            for layer in layers:
                wanted = [
                    sum(centers[each] for each in near) / len(near)
                    if (near := neighbours[one])
                    else centers[one]
                    for one in layer
                ]
                spread(layer, wanted, net.half, width, centers)
    return centers


def spread(
    layer: Sequence[int],
    wanted: Sequence[float],
    half: Sequence[float],
    width: float,
    centers: list[float],
) -> None:
    """Sets the centers nearest to the wanted ones, by least squares, in this order and width.

    ``half`` is half of the space that each needs, and ``width`` is enough for all.  It pools
    adjacent violators: neighbours that are too near to each other move as one block.
    """
    blocks: list[tuple[float, int]] = []  # sum, count of where the layer would begin
    offsets, offset = [], 0.0
    for one, where in zip(layer, wanted, strict=True):
        offsets.append(offset + half[one])
        total, count = where - offsets[-1], 1
        while blocks and blocks[-1][0] * count > total * blocks[-1][1]:
            total, count = total + blocks[-1][0], count + blocks[-1][1]
            blocks.pop()
        blocks.append((total, count))
        offset += 2 * half[one]
    index = 0
    for total, count in blocks:
        begin = min(max(total / count, 0.0), width - offset)
        for _ in range(count):
            centers[layer[index]] = begin + offsets[index]
            index += 1
