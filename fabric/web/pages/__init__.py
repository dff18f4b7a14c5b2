"""The pages: pure functions make their contents of the broker's answers."""

from __future__ import annotations

from fabric.web.page import Page
from fabric.web.pages import build, builds, farm, step, systems, worker

routes: list[Page] = [
    *farm.routes,
    *builds.routes,
    *build.routes,
    *step.routes,
    *worker.routes,
    *systems.routes,
]
