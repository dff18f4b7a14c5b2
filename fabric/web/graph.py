"""The graph of a build, with the states of its steps and its critical path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from fabric.web import dag
from fabric.web.drawing import Box, Drawing, Edge, links
from fabric.web.graphs import Graph
from fabric.web.mirrors import KnownStep
from fabric.web.page import Page, View, Web
from fabric.web.pages.build import find
from fabric.web.pages.facts import STATES, Count, RequestRow, counts, request_row
from fabric.wire.messages import GraphStep, RequestInfo, State

#: ``unneeded``: nothing that is built needs it, as far as known.
GraphState = State | Literal["unneeded"]
#: Letters that the browser gets for states.
LETTERS: dict[GraphState, str] = {
    "waiting": "w",
    "ready": "y",
    "running": "r",
    "done": "d",
    "cached": "c",
    "failed": "f",
    "cancelled": "x",
    "unneeded": "u",
}
#: States of steps that are not drawn, unless asked for.
FOLDED = frozenset({"cached", "unneeded"})
#: States of steps whose artifacts are there, if they are needed.
READY = frozenset({"cached", "unneeded", "done"})
#: Steps that are named above the drawing because they run or failed.
NAMED = 12


class GraphQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """What is drawn."""

    chunks: Literal["", "all"] = ""  # all: also those that are cached or not needed


class GraphRow(View, frozen=True, kw_only=True):
    """A step."""

    key: str
    name: str
    kind: str
    state: GraphState
    seconds: float = 0.0  # how long it took, has run, or should take; 0: unknown
    worker: str = ""
    phase: str = ""
    began: datetime | None = None


class GraphView(View, frozen=True, kw_only=True):
    """A build's graph.  Steps are named by their places in ``steps``."""

    build: RequestRow
    steps: tuple[GraphRow, ...]
    states: tuple[Count, ...]
    critical: tuple[int, ...]  # the steps of the longest path by duration, in order
    critical_seconds: float  # its duration; 0: unknown
    critical_left: float  # expected seconds of those of its steps that are not done
    drawing: Drawing
    links: tuple[Edge, ...]  # lines along the longest path
    layout: str  # changes with the drawing
    folded: int  # chunks that are not drawn

    @property
    def letters(self) -> str:
        """A letter for the state of each step, as in `LETTERS`."""
        return "".join(LETTERS[step.state] for step in self.steps)

    def ready(self, box: Box) -> int:
        """How many chunks of a box are there."""
        return sum(self.steps[place].state in READY for place in box.members)

    @property
    def named(self) -> list[int]:
        """The first steps that failed, or run."""
        return self._acute[:NAMED]

    @property
    def more(self) -> int:
        """How many others failed, or run."""
        return max(0, len(self._acute) - NAMED)

    @property
    def _acute(self) -> list[int]:
        return [
            place
            for wanted in ("failed", "running")
            for place, step in enumerate(self.steps)
            if step.state == wanted
        ]


def rows(steps: Sequence[GraphStep], known: Mapping[str, KnownStep]) -> tuple[GraphRow, ...]:
    """The steps with their states."""
    found = []
    for step in steps:
        if (its := known.get(step.key)) is None:
            row = GraphRow(key=step.key, name=step.name, kind=step.kind, state="unneeded")
        else:
            state = its.state
            row = GraphRow(
                key=step.key,
                name=step.name,
                kind=step.kind,
                state=state.state,
                seconds=_seconds(its),
                worker=state.worker,
                phase=state.phase,
                began=its.began.replace(microsecond=0) if its.began else None,
            )
        found.append(row)
    return tuple(found)


def _seconds(step: KnownStep) -> float:
    state = step.state
    if state.state in ("cached", "cancelled"):
        return 0.0
    if state.state == "running":
        return round(max(state.expected, state.running_for), 3)
    return round(state.seconds or state.expected, 3)


def critical(steps: Sequence[GraphRow], graph: dag.Dag) -> list[int]:
    """The longest path by duration through the steps that are built.

    A step of unknown duration counts as the mean of the others.
    """
    built = [step.state not in ("cached", "unneeded", "cancelled") for step in steps]
    if not any(built):
        return []
    known = [step.seconds for step in steps if step.seconds]
    mean = sum(known) / len(known) if known else 1.0
    path = dag.longest_path(
        dag.reduced(graph, built),
        lambda node: (steps[node].seconds or mean) if built[node] else 0.0,
    )
    return [node for node in path if built[node]]


def view(info: RequestInfo, graph: Graph, steps: tuple[GraphRow, ...], *, all: bool) -> GraphView:
    """The page of a build whose steps are in these states; with ``all``, nothing is folded."""
    hidden = frozenset(
        place
        for place, step in enumerate(steps)
        if step.kind == "chunk" and step.state in FOLDED and not all
    )
    drawing = graph.draw(hidden)
    path = critical(steps, graph.dag)
    left = (steps[place] for place in path if steps[place].state in ("waiting", "ready", "running"))
    return GraphView(
        build=request_row(info, datetime.now(UTC)),
        steps=steps,
        states=counts((step.state for step in steps), (*STATES, "unneeded")),
        critical=tuple(path),
        critical_seconds=round(sum(steps[place].seconds for place in path), 1),
        critical_left=round(sum(step.seconds for step in left), 1),
        drawing=drawing,
        links=links(drawing, path),
        layout=f"{len(steps)}-{hash(hidden) & 0xFFFFFFFF:x}",
        folded=len(hidden),
    )


async def make(web: Web, path: Mapping[str, str], query: GraphQuery) -> GraphView:
    answer = await web.farm.query("requests")
    info = find(answer, path["id"])
    mirror = await web.mirrors.get(info.request)
    graph = await web.graphs.get(info.request)
    steps = rows(graph.steps, mirror.steps)
    return await web.paced.get(
        (info.request, query), lambda: view(info, graph, steps, all=query.chunks == "all")
    )


routes = [
    Page(
        path="/builds/{id}/graph",
        template="graph.html",
        summary="The graph of a build's steps",
        view=GraphView,
        make=make,
        query=GraphQuery,
    )
]
