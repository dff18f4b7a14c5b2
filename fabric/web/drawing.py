"""Draws the steps of a build as a graph: strata as boxes in rows, with their chunks in columns.

Chunks of a stratum are connected by the fewest edges that say the same (`dag.reduced`), and so are
the boxes.  Between chunks of two strata there are no edges: a viewer sees them when they select a
chunk.  Chunks that are cached are only counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import ceil, sqrt
from typing import NamedTuple

from msgspec import Struct

from fabric.web import dag
from fabric.web.layered import Layout, Point, layered, layers
from fabric.wire.messages import GraphStep

#: Pixels at a scale of 1.  Names are in a monospaced font of 12 pixels.
LETTER = 7.25
NODE_HEIGHT = 22.0
NODE_GAP = 5.0
COLUMN_GAP = 20.0
ICON = 20.0  # with the space around it, in front of a name
PADDING = 10.0
HEADER = 42.0  # name of a stratum, and its counter
NAME_HEIGHT = 26.0  # the name alone
BOX = 150.0  # least width of a box
BOX_GAP = 16.0
ROW_GAP = 40.0
SHAPE = 1.1  # about the width of a drawing to its height
#: Letters of a name that are shown.
NAME = 20
BOX_NAME = 30


class Node(Struct, frozen=True):
    """A chunk, in pixels; its height is `NODE_HEIGHT`."""

    step: int  # its place in the graph
    label: str
    x: float
    y: float
    width: float
    needs: tuple[int, ...]  # the nearest drawn steps that it needs


class Edge(Struct, frozen=True):
    """A line from a step to one that needs it; ``path`` is that of an SVG element."""

    source: int
    target: int
    path: str


class Box(Struct, frozen=True):
    """A stratum, a system, or the chunks that are in none, in pixels."""

    label: str
    step: int  # -1: it is no step
    x: float
    y: float
    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    members: tuple[int, ...]  # all its chunks, drawn or not
    needs: tuple[int, ...]  # of its step, as of a node


class Drawing(Struct, frozen=True):
    """All of a graph; ``edges`` connect boxes by their number."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]


def short(name: str, most: int = NAME) -> str:
    """A name without its middle, if it is too long."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"


def prepare(steps: Sequence[GraphStep]) -> dag.Dag:
    """The graph of the steps with the fewest edges."""
    graph = dag.acyclic([step.depends for step in steps])
    return dag.reduced(graph, [True] * len(steps))


def groups(steps: Sequence[GraphStep], graph: dag.Dag) -> list[tuple[int, list[int]]]:
    """(step, its chunks) of each stratum and system, then (-1, chunks of none).

    A chunk that no stratum contains stands with what needs it: it is built only for that.
    """
    owner: dict[int, int] = {}
    for stratum, step in enumerate(steps):
        if step.kind == "stratum":
            for dep in step.depends:
                if dep < len(steps) and steps[dep].kind == "chunk":
                    owner.setdefault(dep, stratum)
    dependents = graph.dependents
    for node in reversed(graph.order):
        if steps[node].kind == "chunk" and node not in owner:
            above = [owner[one] for one in dependents[node] if one in owner]
            owner.update({node: above[0]} if above else {})
    members: dict[int, list[int]] = {
        index: [] for index, step in enumerate(steps) if step.kind != "chunk"
    }
    apart: list[int] = []
    for index, step in enumerate(steps):
        if step.kind == "chunk":
            (members[owner[index]] if index in owner else apart).append(index)
    found_groups = list(members.items())
    return [*found_groups, (-1, apart)] if apart else found_groups


def draw(steps: Sequence[GraphStep], graph: dag.Dag, hidden: Collection[int]) -> Drawing:
    """The drawing of a prepared graph, without the hidden chunks."""
    if not steps:
        return Drawing(0, 0, (), ())
    shown = [index not in hidden or step.kind != "chunk" for index, step in enumerate(steps)]
    near = dag.reduced(graph, shown) if hidden else graph
    owned = groups(steps, graph)

    insides = [_inside([one for one in chunks if shown[one]], steps, near) for _, chunks in owned]
    names = [short(steps[step].name, BOX_NAME) if step >= 0 else "" for step, _ in owned]
    sizes = [
        (
            (HEADER if chunks else NAME_HEIGHT)
            + (inside.across + PADDING if inside.places else 0.0),
            2 * PADDING + max(inside.along, (len(name) + 12) * LETTER, BOX),
        )
        for name, inside, (_, chunks) in zip(names, insides, owned, strict=True)
    ]
    outside = _outside(sizes, _between(owned, graph))

    boxes = []
    for number, (step, chunks) in enumerate(owned):
        y, x = outside.places[number]
        height, width = sizes[number]
        inside = insides[number]
        drawn = [one for one in chunks if shown[one]]
        left, top = x + PADDING, y + HEADER
        nodes = [
            Node(
                step=one,
                label=short(steps[one].name),
                x=round(left + place[0], 1),
                y=round(top + place[1], 1),
                width=_width(steps[one].name),
                needs=tuple(near.depends[one]),
            )
            for one, place in zip(drawn, inside.places, strict=True)
        ]
        edges = [
            Edge(drawn[a], drawn[b], curve([(left + p, top + q) for p, q in points]))
            for (a, b), points in inside.routes.items()
        ]
        boxes.append(
            Box(
                label=names[number],
                step=step,
                x=round(x, 1),
                y=round(y, 1),
                width=round(width, 1),
                height=round(height, 1),
                nodes=tuple(nodes),
                edges=tuple(edges),
                members=tuple(chunks),
                needs=tuple(near.depends[step]) if step >= 0 else (),
            )
        )
    edges = [
        Edge(a, b, curve([(q, p) for p, q in points], down=True))
        for (a, b), points in outside.routes.items()
    ]
    return Drawing(ceil(outside.across), ceil(outside.along), tuple(boxes), tuple(edges))


def _width(name: str) -> float:
    return round(len(short(name)) * LETTER + ICON + 8, 1)


def _inside(chunks: list[int], steps: Sequence[GraphStep], near: dag.Dag) -> Layout:
    """The layout of some chunks in columns, by their edges among themselves."""
    number = {one: place for place, one in enumerate(chunks)}
    depends = [[number[dep] for dep in near.depends[one] if dep in number] for one in chunks]
    graph = dag.acyclic(depends)
    ranks = layers([1.0] * len(chunks), graph, max(6, sqrt(4 * len(chunks))))
    sizes = [(_width(steps[one].name), NODE_HEIGHT) for one in chunks]
    return layered(sizes, graph, ranks, gap=NODE_GAP, layer_gap=COLUMN_GAP)


def _outside(sizes: list[Point], between: dag.Dag) -> Layout:
    """The layout of boxes, given (height, width), in rows.

    In a row, small boxes stand below each other; too wide a row becomes several.
    """
    area = sum((height + BOX_GAP) * (width + BOX_GAP) for height, width in sizes)
    room = max(sqrt(area * SHAPE), *(width + BOX_GAP for _, width in sizes))
    ranks = layers([0.0] * len(sizes), between, room)
    columns: list[list[int]] = []
    rows: list[int] = []  # of each column
    for rank in range(max(ranks) + 1):
        width = room
        for column in _columns([one for one, its in enumerate(ranks) if its == rank], sizes):
            its_width = max(sizes[one][1] for one in column) + BOX_GAP
            if width + its_width > room:
                width = 0.0
                row = rows[-1] + 1 if rows else 0
            width += its_width
            columns.append(column)
            rows.append(row)
    column_of = {one: number for number, column in enumerate(columns) for one in column}
    depends = [
        [column_of[dep] for one in column for dep in between.depends[one]] for column in columns
    ]
    extents = [
        (
            sum(sizes[one][0] + BOX_GAP for one in column) - BOX_GAP,
            max(sizes[one][1] for one in column),
        )
        for column in columns
    ]
    placed = layered(extents, dag.acyclic(depends), rows, gap=BOX_GAP, layer_gap=ROW_GAP)
    places = [(0.0, 0.0)] * len(sizes)
    for column, (along, across) in zip(columns, placed.places, strict=True):
        for one in column:
            places[one] = (along, across)
            along += sizes[one][0] + BOX_GAP
    return Layout(places, placed.routes, placed.along, placed.across)


def _columns(boxes: list[int], sizes: list[Point]) -> list[list[int]]:
    """Boxes of a row in columns, none of which is higher than the highest box."""
    boxes.sort(key=lambda one: sizes[one], reverse=True)
    columns: list[tuple[float, list[int]]] = []  # room that is left
    for one in boxes:
        height = sizes[one][0]
        for place, (left, column) in enumerate(columns):
            if height + BOX_GAP <= left:
                column.append(one)
                columns[place] = (left - height - BOX_GAP, column)
                break
        else:
            columns.append((sizes[boxes[0]][0] - height, [one]))
    return [column for _, column in columns]


def _between(owned: list[tuple[int, list[int]]], graph: dag.Dag) -> dag.Dag:
    """The fewest edges between boxes."""
    box_of = {node: number for number, (_, chunks) in enumerate(owned) for node in chunks}
    box_of.update({step: number for number, (step, _) in enumerate(owned) if step >= 0})
    depends = []
    for number, (step, chunks) in enumerate(owned):
        inside = [*chunks, step] if step >= 0 else chunks
        depends.append(
            sorted({box_of[dep] for one in inside for dep in graph.depends[one]} - {number})
        )
    return dag.reduced(dag.acyclic(depends), [True] * len(owned))


def links(drawing: Drawing, path: Sequence[int]) -> tuple[Edge, ...]:
    """Lines along a path of steps, where both ends are drawn and not one in the other."""
    places: dict[int, Place] = {}
    known: dict[tuple[int, int], Edge] = {}
    within = set()
    for box in drawing.boxes:
        places[box.step] = Place(box.x, box.y, box.x + box.width, box.y + NAME_HEIGHT)
        for node in box.nodes:
            places[node.step] = Place(node.x, node.y, node.x + node.width, node.y + NODE_HEIGHT)
            within.add((node.step, box.step))
        known.update({(edge.source, edge.target): edge for edge in box.edges})
    found = []
    for pair in pairwise(path):
        if pair in known:
            found.append(known[pair])
        elif pair not in within and pair[0] in places and pair[1] in places:
            found.append(Edge(*pair, connection(places[pair[0]], places[pair[1]])))
    return tuple(found)


class Place(NamedTuple):
    """The sides of a node."""

    left: float
    top: float
    right: float
    bottom: float


def connection(one: Place, other: Place) -> str:
    """A line from a node to another: to the right if the other is there, else down."""
    if other.left < one.right and other.top > one.bottom:
        ends = [
            ((each.left + each.right) / 2, y) for each, y in ((one, one.bottom), (other, other.top))
        ]
        return curve(ends, down=True)
    ends = [
        (x, (each.top + each.bottom) / 2) for each, x in ((one, one.right), (other, other.left))
    ]
    return curve(ends)


def curve(points: Sequence[Point], *, down: bool = False) -> str:
    """A smooth SVG path through points (x, y), that leaves each to the right or, if so, below."""
    found = ["M{:.0f} {:.0f}".format(*points[0])]
    for (x, y), (to_x, to_y) in pairwise(points):
        if round(x if down else y) == round(to_x if down else to_y):
            found.append(f"L{to_x:.0f} {to_y:.0f}")
        elif down:
            middle = (y + to_y) / 2
            found.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
        else:
            middle = (x + to_x) / 2
            found.append(f"C{middle:.0f} {y:.0f} {middle:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}")
    return "".join(found)
