"""The graph of a build: fewest edges, the longest path, and a drawing in which nothing overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations, pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures_kit import Build, build_system, gnome

from fabric.web import dag, drawing
from fabric.web.graph import FOLDED, LETTERS, GraphRow, GraphView, critical, rows, view
from fabric.web.graphs import Graph
from fabric.web.layered import layered, layers
from fabric.web.mirrors import KnownStep
from fabric.wire.messages import GraphStep

NOW = datetime(2026, 11, 29, tzinfo=UTC)


@st.composite
def graphs(draw: st.DrawFn, most: int = 9) -> list[list[int]]:
    """Graphs without circles, in an order in which what is needed need not come first."""
    count = draw(st.integers(1, most))
    place = draw(st.permutations(range(count)))
    depends: list[list[int]] = [[] for _ in range(count)]
    for node in range(count):
        needed = draw(st.lists(st.sampled_from(range(count)), max_size=4, unique=True))
        depends[place[node]] = [place[one] for one in needed if one < node]
    return depends


def ancestors(depends: Sequence[Sequence[int]], node: int) -> set[int]:
    found: set[int] = set()
    todo = list(depends[node])
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += depends[one]
    return found


def paths(depends: Sequence[Sequence[int]]) -> list[list[int]]:
    """All paths."""

    def to(node: int) -> list[list[int]]:
        return [[node], *([*path, node] for dep in depends[node] for path in to(dep))]

    return [path for node in range(len(depends)) for path in to(node)]


# -- graphs --------------------------------------------------------------------------------


@given(graphs())
def test_order_has_each_node_after_what_it_needs(depends: list[list[int]]) -> None:
    graph = dag.acyclic(depends)
    assert sorted(graph.order) == list(range(len(depends)))
    assert [set(its) for its in graph.depends] == [set(its) for its in depends]
    for node, needs in enumerate(depends):
        assert all(graph.order.index(dep) < graph.order.index(node) for dep in needs)


@given(st.lists(st.lists(st.integers(-2, 8), max_size=5), max_size=7))
def test_any_input_becomes_a_graph_without_circles(depends: list[list[int]]) -> None:
    graph = dag.acyclic(depends)
    for node, needs in enumerate(graph.depends):
        assert node not in ancestors(graph.depends, node)
        assert set(needs) <= set(depends[node])


@given(graphs(), st.data())
def test_reduction_keeps_ancestors_with_the_fewest_edges(
    depends: list[list[int]], data: st.DataObject
) -> None:
    shown = data.draw(st.lists(st.booleans(), min_size=len(depends), max_size=len(depends)))
    graph = dag.reduced(dag.acyclic(depends), shown)
    for node in range(len(depends)):
        before = {one for one in ancestors(depends, node) if shown[one]} if shown[node] else set()
        assert ancestors(graph.depends, node) == before
        # No edge can be left out: none of the needed ones needs another.
        needs = graph.depends[node]
        assert not any(one in ancestors(graph.depends, other) for one in needs for other in needs)


@given(graphs(), st.data())
def test_longest_path_is_the_best_of_all(depends: list[list[int]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 9), min_size=len(depends), max_size=len(depends)))
    graph = dag.acyclic(depends)
    found = dag.longest_path(graph, weights.__getitem__)
    assert all(before in depends[node] for before, node in pairwise(found))
    best = max(sum(map(weights.__getitem__, path)) for path in paths(depends))
    assert sum(map(weights.__getitem__, found)) == best


# -- layers --------------------------------------------------------------------------------


@given(graphs(12), st.data())
def test_layered_nodes_never_overlap_and_edges_go_forward(
    depends: list[list[int]], data: st.DataObject
) -> None:
    size = st.tuples(st.integers(5, 90).map(float), st.integers(5, 40).map(float))
    sizes = data.draw(st.lists(size, min_size=len(depends), max_size=len(depends)))
    room = data.draw(st.integers(40, 200))
    graph = dag.reduced(dag.acyclic(depends), [True] * len(depends))
    ranks = layers([across for _, across in sizes], graph, room)
    layout = layered(sizes, graph, ranks, gap=4, layer_gap=10)
    boxes = [
        (along, across, along + size[0], across + size[1])
        for (along, across), size in zip(layout.places, sizes, strict=True)
    ]
    for one, other in combinations(boxes, 2):
        apart = (
            one[2] + 10 <= other[0] + 1e-6
            or other[2] + 10 <= one[0] + 1e-6
            or one[3] + 4 <= other[1] + 1e-6
            or other[3] + 4 <= one[1] + 1e-6
        )
        assert apart
    for box in boxes:
        assert box[0] >= -1e-6
        assert box[1] >= -1e-6
        assert box[2] <= layout.along + 1e-6
        assert box[3] <= layout.across + 1e-6
    assert set(layout.routes) == {
        (dep, node) for node in range(len(depends)) for dep in graph.depends[node]
    }
    for (dep, node), points in layout.routes.items():
        assert points[0][0] == boxes[dep][2]
        assert points[-1][0] == boxes[node][0]
        assert all(before[0] <= after[0] for before, after in pairwise(points))


@given(graphs(), st.integers(2, 4))
def test_layers_have_room_for_what_is_in_them(depends: list[list[int]], room: int) -> None:
    ranks = layers([1.0] * len(depends), dag.acyclic(depends), room)
    assert all(ranks.count(rank) <= room for rank in ranks)
    assert all(ranks[dep] < ranks[node] for node, its in enumerate(depends) for dep in its)
    assert set(ranks) == set(range(max(ranks) + 1))


def test_a_drawing_is_no_wider_than_its_widest_layer() -> None:
    graph = dag.acyclic([[], [], [], [], [3], [3]])
    ranks = [0, 0, 0, 0, 1, 1]
    layout = layered([(10.0, 20.0)] * 6, graph, ranks, gap=5, layer_gap=10)
    assert layout.across == pytest.approx(4 * 20 + 3 * 5, abs=5)


def test_a_long_edge_does_not_pass_through_a_node() -> None:
    graph = dag.acyclic([[], [0], [1], [2, 0]])
    ranks = layers([1.0] * 4, graph, 9)
    layout = layered([(50.0, 20.0)] * 4, graph, ranks, gap=5, layer_gap=20)
    assert len(layout.routes[0, 3]) == 2 + 2 * 2  # it passes two layers
    for along, across in layout.routes[0, 3][1:-1]:
        for node in (1, 2):
            left, top = layout.places[node]
            assert not (left <= along <= left + 50 and top <= across <= top + 20)


# -- drawings ------------------------------------------------------------------------------


def drawn(steps: Sequence[GraphStep], hidden: frozenset[int] = frozenset()) -> drawing.Drawing:
    return drawing.draw(steps, drawing.prepare(steps), hidden)


@pytest.mark.parametrize("steps", [gnome(), build_system()], ids=["gnome", "build-system"])
def test_drawing_shows_each_chunk_once_inside_its_stratum(steps: tuple[GraphStep, ...]) -> None:
    found = drawn(steps)
    assert sorted(
        [node.step for box in found.boxes for node in box.nodes]
        + [box.step for box in found.boxes if box.step >= 0]
    ) == list(range(len(steps)))
    for box in found.boxes:
        assert [node.step for node in box.nodes] == list(box.members)
        for node in box.nodes:
            assert box.x < node.x
            assert node.x + node.width < box.x + box.width
            assert box.y + drawing.HEADER <= node.y
            assert node.y + drawing.NODE_HEIGHT < box.y + box.height
        for node, next_node in combinations(box.nodes, 2):
            assert (
                node.x + node.width < next_node.x
                or next_node.x + next_node.width < node.x
                or abs(node.y - next_node.y) >= drawing.NODE_HEIGHT
            )
    for one, other in combinations(found.boxes, 2):
        assert (
            one.x + one.width < other.x
            or other.x + other.width < one.x
            or one.y + one.height < other.y
            or other.y + other.height < one.y
        )
        assert max(one.x + one.width, other.x + other.width) <= found.width
        assert max(one.y + one.height, other.y + other.height) <= found.height


def test_450_chunks_have_few_lines_and_a_page_like_shape() -> None:
    found = drawn(gnome())
    lines = sum(len(box.edges) for box in found.boxes) + len(found.edges)
    assert sum(len(step.depends) for step in gnome()) > 60_000
    assert lines < 2 * len(gnome())
    assert found.width < 2600
    assert 0.4 < found.width / found.height < 2.5


def test_chunks_that_no_stratum_contains_stand_with_what_needs_them() -> None:
    steps = [
        GraphStep("0" * 64, "stage1", "chunk"),
        GraphStep("1" * 64, "gcc", "chunk", (0,)),
        GraphStep("2" * 64, "alone", "chunk"),
        GraphStep("3" * 64, "core", "stratum", (1,)),
    ]
    assert drawing.groups(steps, drawing.prepare(steps)) == [(3, [0, 1]), (-1, [2])]


def test_hidden_chunks_are_counted_and_paths_lead_through_them() -> None:
    steps = [
        GraphStep("0" * 64, "zlib", "chunk"),
        GraphStep("1" * 64, "python", "chunk", (0,)),
        GraphStep("2" * 64, "meson", "chunk", (0, 1)),
        GraphStep("3" * 64, "core", "stratum", (0, 1, 2)),
    ]
    (box,) = drawn(steps, frozenset({1})).boxes
    assert [node.step for node in box.nodes] == [0, 2]
    assert box.members == (0, 1, 2)
    assert [(edge.source, edge.target) for edge in box.edges] == [(0, 2)]


def test_graph_without_steps_has_an_empty_drawing() -> None:
    assert drawn([]) == drawing.Drawing(0, 0, (), ())


def test_long_names_lose_their_middle() -> None:
    assert drawing.short("zlib") == "zlib"
    assert drawing.short("python3-setuptools-scm", 11) == "pytho…s-scm"


def test_links_follow_the_edges_that_are_drawn_and_jump_between_strata() -> None:
    steps = [
        GraphStep("0" * 64, "a", "chunk"),
        GraphStep("1" * 64, "b", "chunk", (0,)),
        GraphStep("2" * 64, "c", "chunk", (0, 1)),
        GraphStep("3" * 64, "one", "stratum", (0, 1)),
        GraphStep("4" * 64, "two", "stratum", (2,)),
    ]
    found = drawn(steps)
    lines = drawing.links(found, [0, 1, 2, 4])
    assert [(line.source, line.target) for line in lines] == [(0, 1), (1, 2)]
    assert lines[0] == found.boxes[0].edges[0]


def test_lines_lead_to_the_right_or_down() -> None:
    one = drawing.Place(0, 0, 50, 20)
    assert drawing.connection(one, drawing.Place(70, 0, 90, 20)) == "M50 10L70 10"
    assert drawing.connection(one, drawing.Place(20, 60, 40, 80)) == "M25 20C25 40 30 40 30 60"


# -- the page ------------------------------------------------------------------------------


def row(state: str, seconds: float = 0.0) -> GraphRow:
    return GraphRow(key="0" * 64, name="x", kind="chunk", state=state, seconds=seconds)  # type: ignore[arg-type]


def test_critical_path_is_the_longest_by_duration_of_what_is_built() -> None:
    #  0 -> 1 -> 4 and 2 -> 3 -> 4; 2 takes longest, but is cached
    graph = dag.acyclic([[], [0], [], [2], [1, 3]])
    steps = [row("done", 5), row("running", 3), row("cached", 90), row("done", 6), row("waiting")]
    assert critical(steps, graph) == [0, 1, 4]
    assert critical([row("cached", 5)], dag.acyclic([[]])) == []


def test_steps_of_unknown_duration_count_as_the_mean() -> None:
    graph = dag.acyclic([[], [], [1]])
    steps = [row("waiting", 10), row("waiting"), row("waiting")]
    assert critical(steps, graph) == [1, 2]


def page(build: Build, *, all: bool = False) -> GraphView:
    steps = tuple(build.steps)
    graph = Graph(steps, drawing.prepare(steps))
    known = {state.key: KnownStep(state, NOW) for state in build.states.values()}
    return view(build.info, graph, rows(steps, known), all=all)


def test_page_folds_cached_chunks_and_marks_a_path_that_leads_to_the_goal() -> None:
    build = Build(gnome(), after=900.0, cached=range(120), failing=[300])
    found = page(build)
    folded = {place for place, step in enumerate(gnome()) if place < 120 and step.kind == "chunk"}
    assert found.folded == len(folded)
    nodes = {node.step for box in found.drawing.boxes for node in box.nodes}
    assert nodes.isdisjoint(folded)
    assert len(found.letters) == len(gnome())
    assert {found.letters[place] for place in folded} == {LETTERS["cached"]}
    assert not any(found.critical[-1] in step.depends for step in gnome())
    for before, after in pairwise(found.critical):
        assert before in gnome()[after].depends
    assert {(line.source, line.target) for line in found.links} <= set(pairwise(found.critical))
    assert sum(count.count for count in found.states) == len(gnome())
    assert page(build, all=True).folded == 0
    assert page(build, all=True).layout != found.layout
    assert msgspec.json.decode(msgspec.json.encode(found))["critical"] == list(found.critical)


def test_steps_without_a_state_are_not_needed() -> None:
    steps = build_system()
    found = rows(steps, {})
    assert {step.state for step in found} == {"unneeded"}
    assert "unneeded" in FOLDED
