"""Gathers the routes of all modules."""

from __future__ import annotations

from starlette.routing import BaseRoute

from fabric.web import graph, logs, pages, timeline
from fabric.web.page import Page

ROUTES: list[Page | BaseRoute] = [
    *pages.routes,
    *graph.routes,
    *timeline.routes,
    *logs.routes,
]
