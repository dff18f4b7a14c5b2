"""Keeps the graphs of the builds that were looked at last: a graph does not change."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection

from msgspec import Struct

from fabric import bounds
from fabric.web.asks import Asks
from fabric.web.dag import Dag
from fabric.web.drawing import Drawing, draw, prepare
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
        self._known: OrderedDict[str, Graph] = OrderedDict()

    async def get(self, request: str) -> Graph:
        """The graph of a request, without steps if it has none yet.  Errors as `Asks.query`."""
        graph = self._known.get(request)
        if graph is None:
            steps = (await self._farm.query("graph", request)).graph
            graph = Graph(steps, await asyncio.to_thread(prepare, steps))
            if steps:
                self._known[request] = graph
        if request in self._known:
            self._known.move_to_end(request)
            self._forget()
        return graph

    def _forget(self) -> None:
        """Forget the graphs looked at longest ago."""
        steps = sum(len(graph.steps) for graph in self._known.values())
        while len(self._known) > 1 and steps > bounds.WEB_STEPS:
            _, oldest = self._known.popitem(last=False)
            steps -= len(oldest.steps)
