"""``build``: builds a system, or parts of it, on this machine or on a farm.

Most modules are imported after the zygote (see `fabric.client.embedded`) is forked: it loads the
programs of the fabric in the meantime.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import TYPE_CHECKING

from fabric.client.embedded import EmbeddedFabric
from fabric.commands.shared.arguments import add_json, add_limits, add_locked
from fabric.config import Settings, built_architectures, config_path
from fabric.errors import FabricError, command

if TYPE_CHECKING:
    from fabric.client.render import Screen
    from fabric.plan import Plan
    from fabric.trove.artifacts.store import Store
    from fabric.wire.messages import StepState


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_limits(parser)
    add_locked(parser)
    parser.add_argument("system", metavar="SYSTEM", help="system morph")
    parser.add_argument(
        "chunks",
        nargs="*",
        default=[],
        metavar="CHUNK",
        help="build only these, and what they need",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="after a failure, build the steps that do not need it",
    )
    parser.add_argument(
        "--detach", action="store_true", help="submit the build to the controller and exit"
    )
    parser.add_argument(
        "--priority",
        type=int,
        metavar="N",
        help="-10 to 10; 1 more doubles the share of the build",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if settings.controller:
        from fabric.commands.shared.remote_build import build_remotely
        from fabric.commands.shared.signals import interrupt_on_signals

        interrupt_on_signals()
        return build_remotely(options, settings)
    if options.detach:
        raise FabricError(
            "--detach needs a controller, which goes on with the build: give --controller HOST"
        )
    with EmbeddedFabric(settings) as fabric:
        from fabric.client.render import opened_screen
        from fabric.commands.shared.plans import open_plan, report_unpinned
        from fabric.commands.shared.report import Built, complete_logs, report
        from fabric.commands.shared.signals import interrupt_on_signals
        from fabric.trove.artifacts.health import Health

        interrupt_on_signals()
        with opened_screen(options.json) as screen:
            project, plan = open_plan(
                settings, options.system, options.chunks, locked=options.locked
            )
            report_unpinned(project.unpinned(plan.graph, plan.goals))
            project.remember(plan.graph.path)
            health = Health(project.store)
            goals = {plan.keys[goal]: plan.graph[goal] for goal in plan.goals}
            for key, why in health.mend(goals).items():
                screen.event("damaged", name=goals[key].name, key=key, message=why)
                screen.say(f"{goals[key].name} is built again: {why}", "yellow")
            if project.store.has(goals) == set(goals):
                how = f"all {len(plan.steps)} steps cached"
                complete_logs(screen, project.store)
            else:
                how = _build(options, settings, plan, screen, fabric, project.store)
                health.believe(goals)
            built = [Built(goal.name, goal.kind, key) for key, goal in goals.items()]
            report(screen, project.store, built, options.system, how)
    return 0


def _build(
    options: argparse.Namespace,
    settings: Settings,
    plan: Plan,
    screen: Screen,
    fabric: EmbeddedFabric,
    store: Store,
) -> str:
    """Build the plan on this machine; returns a summary."""
    _require_architecture(plan, settings, store)
    began = time.monotonic()
    fabric.start()
    from fabric.client.render import duration
    from fabric.client.session import Session
    from fabric.commands.shared.report import complete_logs, failed
    from fabric.trove.sources.build_refs import new_request
    from fabric.trove.sources.snapshot import user
    from fabric.wire.connection import Connection
    from fabric.wire.messages import PROTOCOL, BuildGraph
    from fabric.wire.sockets import in_directory

    def hint(step: StepState) -> str:
        return f"shell: {command('shell', step.name, '--system', options.system)}"

    submit = BuildGraph(
        protocol=PROTOCOL,
        request=new_request(),
        title=f"{plan.graph.system} for {user()}",
        steps=plan.step_specs(),
        goals=plan.goal_keys,
        along=plan.along,
        keep_going=options.keep_going,
    )
    with (
        store.reserve(plan.keys.values()),
        contextlib.closing(Connection(in_directory(fabric.directory), "follow")) as line,
    ):
        session = Session(submit, line, screen, fabric.check)
        session.follow("{}; built steps are kept, and the same command goes on with the rest")
    fabric.stop()
    complete_logs(screen, store)
    failed(session, settings, hint)
    session.judge(plan.graph.system)
    return f"{session.counts()} in {duration(time.monotonic() - began)}"


def _require_architecture(plan: Plan, settings: Settings, store: Store) -> None:
    """FabricError if this machine does not build for the system's architecture."""
    here = built_architectures(settings)
    arch = plan.graph.arch
    if arch in here:
        return
    cached = store.has(plan.keys[step.id] for step in plan.steps)
    first = next(step.name for step in plan.steps if plan.keys[step.id] not in cached)
    mine = " and ".join(here)
    named = ", ".join(f'"{one}"' for one in (*here, arch))
    raise FabricError(
        f"{plan.graph.path}: {first} has to be built for {arch}, and this machine builds {mine}."
        f" Build it on a farm that has a worker for {arch}: --controller HOST."
        f" If programs for {arch} run here, set in {config_path()}: architectures = [{named}]"
    )
