"""Keeps the graphs of the builds that were looked at last: a graph does not change."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from msgspec import Struct

from fabric import bounds
from fabric.web.asks import Asks
from fabric.web.dag import Dag
from fabric.web.drawing import Drawing, draw, prepare
from fabric.web.kept import Kept
from fabric.wire.messages import GraphStep


class Graph(Struct):
    """The steps of a build."""

    steps: tuple[GraphStep, ...]
    dag: Dag  # with the fewest edges
    drawing: Drawing | None = None  # the last one
    hidden: frozenset[int] = frozenset()  # the chunks that it leaves out

    def draw(self, hidden: Collection[int]) -> Drawing:
        """The drawing without these chunks."""
        hidden = frozenset(hidden)
        if self.drawing is None or self.hidden != hidden:
            self.drawing, self.hidden = draw(self.steps, self.dag, hidden), hidden
        return self.drawing


class Graphs:
    """The graphs of requests, as far as they are resolved."""

    def __init__(self, farm: Asks) -> None:
        self._farm = farm
        self._known: Kept[str, Graph] = Kept(lambda graph: len(graph.steps))

    async def get(self, request: str) -> Graph:
        """The graph of a request, without steps if it has none yet.  Errors as `Asks.query`."""
        async with self._known.turn(request) as graph:
            if graph is None:
                steps = (await self._farm.query("graph", request)).graph
                graph = Graph(steps, await asyncio.to_thread(prepare, steps))
            if graph.steps:
                self._known.keep(request, graph, bounds.WEB_STEPS)
            return graph
