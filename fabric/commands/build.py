"""``build``: the reason for all this."""

from __future__ import annotations

import argparse
import signal
import time

from fabric.commands.common import open_plan
from fabric.config import Settings
from fabric.embedded import EmbeddedFabric
from fabric.errors import BuildFailed, FabricError, MachineFault
from fabric.plan import Plan
from fabric.project import Project
from fabric.render import Screen, duration, open_screen, size


def run(options: argparse.Namespace, settings: Settings) -> int:
    if settings.controller:
        raise FabricError(
            f"controller {settings.controller}: this version builds on one machine only;"
            " unset `controller` (FABRIC_CONTROLLER)"
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with EmbeddedFabric(settings) as fabric:
        project, plan = open_plan(settings, options.system, options.chunks)
        project.remember(plan.graph.path)
        screen = open_screen(options.json)
        try:
            keys = {plan.keys[goal] for goal in plan.goals}
            if project.store.has(keys) != keys:
                return _build(options, project, plan, screen, fabric)
            _report(screen, project, plan, options.system, f"all {len(plan.steps)} steps cached")
            return 0
        finally:
            screen.close()


def _build(
    options: argparse.Namespace,
    project: Project,
    plan: Plan,
    screen: Screen,
    fabric: EmbeddedFabric,
) -> int:
    began = time.monotonic()
    fabric.start()
    from fabric.commands.session import Session  # what is cached needs no sockets

    session = Session(plan, fabric, screen, options.keep_going)
    try:
        session.run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ending takes a moment, let it
        over = session.mirror.over
        session.close()
        fabric.stop()
        if not over:
            screen.say("interrupted; what was built is kept, the same command goes on there")
    session.report_failures(options.system)
    if session.mirror.state != "done":
        raise BuildFailed(f"{plan.graph.system} is not built: {session.failures()}")
    took = duration(time.monotonic() - began)
    _report(screen, project, plan, options.system, f"{session.counts()} in {took}")
    return 0


def _report(screen: Screen, project: Project, plan: Plan, system: str, how: str) -> None:
    """Where the result is."""
    for goal in plan.goals:
        step = plan.graph[goal]
        manifest = project.store.manifest(plan.keys[goal])
        if manifest is None:
            raise MachineFault(f"{step.name}: gone from the store {project.store.url} at once")
        blobs = [artifact.blob for artifact in manifest.artifacts if artifact.blob]
        screen.event(
            "built",
            name=step.name,
            key=manifest.key,
            store=project.store.url,
            artifacts={a.name: a.blob.sha256 if a.blob else None for a in manifest.artifacts},
        )
        screen.say(f"{step.name} is built: {how}", "bold green")
        total = size(sum(blob.size for blob in blobs))
        screen.say(f"  key    {manifest.key[:16]}, {total} in {project.store.url}")
        if step.kind == "system":
            screen.say(f"  files  fabric-initiator checkout {system} --to DIRECTORY")
            screen.say(f"  disk   fabric-initiator image {system} --to {step.name}.img")
        else:
            screen.say(f"  files  fabric-initiator checkout {system} {step.name} --to DIRECTORY")


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
