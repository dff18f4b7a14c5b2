"""Finds a build and its attempts: at the controller, in a build here, or in the journal here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from fabric import bounds
from fabric.client.build_trace import Attempt, TracedBuild
from fabric.client.controller import SHOWN, Controller
from fabric.client.controllers import BuildEnded, Controllers
from fabric.client.request import OVER
from fabric.config import Settings
from fabric.controller.history import phases_of
from fabric.controller.journal_file import StoredBuild, stored_builds
from fabric.errors import FabricError, command
from fabric.wire.messages import AttemptInfo, RequestInfo


def find_build(settings: Settings, named: str) -> TracedBuild:
    """The build whose id begins with ``named``.  FabricError if there is none, or several.

    Without a controller, it runs on this machine, or has run here; "" is the last that ended here.
    """
    if named or settings.controller:
        with Controllers(settings) as controllers:
            if settings.controller or _runs(controllers, named):
                controller, info = controllers.request(named)
                try:
                    return _asked(controller, info)
                except BuildEnded:
                    pass  # a moment ago: the journal has it
    return _from_journal(settings.state_dir / "journal.sqlite", named)


def _runs(controllers: Controllers, named: str) -> bool:
    return any(info.request.startswith(named) for info in controllers.requests())


def _asked(controller: Controller, info: RequestInfo) -> TracedBuild:
    """A build as its controller knows it."""
    attempts = list(_attempts(controller, info.request))
    graph = controller.query("graph", info.request).graph
    now = time.time()
    began, ends = now - info.since, [one.ended for one in attempts]
    return TracedBuild(
        info.request,
        info.title,
        info.requester,
        info.state,
        began,
        max(ends, default=began) if info.state in OVER else now,
        attempts,
        graph if any(step.depends for step in graph) else (),
    )


def _attempts(controller: Controller, request: str) -> Iterator[Attempt]:
    seen, known = 0, set[tuple[str, int]]()
    while True:
        page = controller.query("attempts", request, seen).attempts
        now = time.time()
        for info in page:
            if (info.key, info.fence) not in known:
                known.add((info.key, info.fence))
                began = now - info.ago
                yield Attempt(info, began, began + info.seconds)
        past = [info.number for info in page if info.number]
        if len(past) < bounds.ATTEMPTS_SHOWN:
            return
        seen = past[-1]


def _from_journal(path: Path, named: str) -> TracedBuild:
    """A build on this machine that is over."""
    found = [build for build in stored_builds(path) if build.request.startswith(named)]
    if named and len(found) > 1:
        ids = ", ".join(f"{one.request[:SHOWN]} ({one.title})" for one in found[:5])
        raise FabricError(f"{named}: the ids of several builds begin with this: {ids}")
    if not found:
        what = f"{named}: no such build" if named else "no build on this machine has ended yet"
        raise FabricError(
            f"{what}; `{command('list')}` lists those that run, and --controller HOST asks a farm"
        )
    build: StoredBuild = found[-1]
    keys = {step.key for step in build.outcome.steps}
    attempts = [
        Attempt(
            AttemptInfo(
                key=one.key,
                fence=one.fence,
                name=one.name or one.key[:SHOWN],
                kind=one.kind,
                worker=one.worker,
                ago=0.0,
                seconds=one.ended - one.began,
                number=one.number,
                result=one.result,
                message=one.message,
                phases=phases_of(one),
            ),
            one.began,
            one.ended,
        )
        for one in build.attempts()
        if one.key in keys
    ]
    return TracedBuild(
        build.request,
        build.title,
        build.requester,
        build.outcome.state,
        build.opened,
        build.closed,
        attempts,
    )
