"""``build``: builds a system, or parts of it, on this machine or on a farm.

Most modules are imported after the zygote (see `fabric.client.embedded`) is forked: it loads the
programs of the fabric in the meantime.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fabric.client.embedded import EmbeddedFabric
from fabric.commands.shared.arguments import add_json, add_limits, add_locked, add_verbose
from fabric.config import Settings, built_architectures, config_path
from fabric.errors import FabricError, command

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.client.render import Screen
    from fabric.commands.shared.web_page import WebPage
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
        "--explain", action="store_true", help="print why each step is built, before the build"
    )
    add_verbose(parser)
    parser.add_argument(
        "--clean", action="store_true", help="build edited chunks in clean trees, as others would"
    )
    parser.add_argument(
        "--rebuild",
        action="append",
        default=[],
        metavar="CHUNK",
        help="build this once more if it is cached, and compare the results; the first one stays",
    )
    comparing = parser.add_mutually_exclusive_group()
    comparing.add_argument(
        "--check-digests",
        action="store_true",
        help="compare the artifacts with the SHA-256 of each in the file SYSTEM.digests",
    )
    comparing.add_argument(
        "--write-digests", action="store_true", help="write the file SYSTEM.digests"
    )
    failing = parser.add_mutually_exclusive_group()
    failing.add_argument(
        "-k",
        "--keep-going",
        action="store_true",
        help="after a failure, build the steps that do not need it",
    )
    failing.add_argument(
        "--fail-fast", action="store_true", help="after a failure, cancel the steps that run"
    )
    parser.add_argument(
        "--detach", action="store_true", help="submit the build to the controller and exit"
    )
    parser.add_argument(
        "--web", action="store_true", help="show the build in the browser while it runs"
    )
    parser.add_argument(
        "--priority",
        type=int,
        metavar="N",
        help="-10 to 10; 1 more doubles the share of the build",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.web and options.detach:
        raise FabricError("--web shows the build while this command runs, but --detach ends it")
    if settings.controller:
        from fabric.commands.shared.remote_build import build_remotely
        from fabric.commands.shared.signals import interrupt_on_signals

        interrupt_on_signals()
        with _web(options, settings) as page:
            return build_remotely(options, settings, page)
    if options.detach:
        raise FabricError(
            "--detach needs a controller, which goes on with the build: give --controller HOST"
        )
    build_here(options, settings)
    return 0


def build_here(options: argparse.Namespace, settings: Settings) -> tuple[Project, Plan]:
    """Build on this machine; returns the project, and the plan of what was built."""
    with EmbeddedFabric(settings) as fabric, _web(options, settings) as page:
        from fabric.client.render import opened_screen
        from fabric.commands.shared.plans import report_edits, report_unpinned
        from fabric.commands.shared.report import Built, complete_logs, report
        from fabric.commands.shared.signals import interrupt_on_signals
        from fabric.definitions.select import find_built
        from fabric.plan import rebuild_key
        from fabric.trove.artifacts.health import Health

        interrupt_on_signals()
        with opened_screen(options.json) as screen:
            project, plan = _plan(options, settings)
            digests = options.check_digests or options.write_digests
            if digests:
                from fabric.commands.shared.digests import expected_digests, handle_digests

                expected = expected_digests(options, project, plan.graph.path)
            report_edits(project, plan.graph, plan.goals)
            report_unpinned(project.unpinned(plan.graph, plan.goals))
            project.remember(plan.graph.path)
            health = Health(project.store)
            goals = {plan.keys[goal]: plan.graph[goal] for goal in plan.goals}
            for key, why in health.mend(goals).items():
                screen.event("damaged", name=goals[key].name, key=key, message=why)
                screen.say(f"{goals[key].name} is built again: {why}", "yellow")
            there = project.store.has(goals)
            rebuilt = find_built(plan.graph, options.rebuild)
            again = [step for step in rebuilt if plan.keys[step] in there]
            if there == set(goals) and not again:
                how = f"all {len(plan.steps)} steps cached"
                complete_logs(screen, project.store)
            else:
                project.store.prepare()
                if options.explain:
                    from fabric.commands.shared.explained import report_reasons

                    report_reasons(screen, project, plan)
                from fabric.trove.sources.build_refs import new_request

                request = new_request()
                plan, how = _build(
                    options, settings, plan, again, request, screen, fabric, project.store, page
                )
                goals = {plan.keys[goal]: plan.graph[goal] for goal in plan.goals}
                health.believe(goals)
            built = [Built(goal.name, goal.kind, key) for key, goal in goals.items()]
            report(screen, project.store, built, options.system, how)
            if digests:
                handle_digests(screen, project, plan, expected)
            if again:
                from fabric.commands.shared.rebuilt import report_rebuilds

                keys = [plan.keys[step] for step in again]
                rebuilds = {key: rebuild_key(key, request) for key in keys}
                report_rebuilds(screen, project.store, rebuilds)
    return project, plan


def _web(
    options: argparse.Namespace, settings: Settings
) -> contextlib.AbstractContextManager[WebPage | None]:
    """The web page, if it is wanted."""
    if not options.web:
        return contextlib.nullcontext()
    from fabric.commands.shared.web_page import web_page

    return web_page(settings)


def _plan(options: argparse.Namespace, settings: Settings) -> tuple[Project, Plan]:
    """The project, and the plan of the build."""
    from fabric.commands.shared.plans import open_plan

    return open_plan(
        settings,
        options.system,
        options.chunks,
        locked=options.locked,
        clean=options.clean,
        again=options.rebuild,
    )


def _build(
    options: argparse.Namespace,
    settings: Settings,
    plan: Plan,
    again: Sequence[str],
    request: str,
    screen: Screen,
    fabric: EmbeddedFabric,
    store: Store,
    page: WebPage | None,
) -> tuple[Plan, str]:
    """Build the plan on this machine, and the steps ``again`` once more.

    Returns the plan, as a retry may have changed it, and a summary.
    """
    began = time.monotonic()
    lacking = _lacking(plan, store)
    _require_architecture(plan, settings, lacking)
    fabric.start(len(lacking) + len(again), plan.host_tools)
    from fabric.client.render import duration
    from fabric.client.session import Session
    from fabric.commands.shared.follow_up import FollowUp
    from fabric.commands.shared.report import complete_logs, failed
    from fabric.trove.sources.build_refs import new_request
    from fabric.trove.sources.snapshot import user
    from fabric.wire.connection import Connection
    from fabric.wire.messages import PROTOCOL, BuildGraph
    from fabric.wire.sockets import in_directory

    def hint(step: StepState) -> str:
        return f"shell: {command('shell', step.name, '--system', options.system)}"

    rest: tuple[str, ...] = ()

    def prepare(steps: tuple[str, ...]) -> None:
        nonlocal plan, rest
        if not steps:
            plan = _plan(options, settings)[1]
            fabric.start(len(_lacking(plan, store)), plan.host_tools)
        rest = tuple(plan.keys[id] for id in steps)

    def open_shell(name: str) -> None:
        from fabric.commands import shell  # loads what builds; few builds need it

        parser = argparse.ArgumentParser()
        shell.arguments(parser)
        shell.run(parser.parse_args(["--system", options.system, "--", name]), settings)

    follow_up = FollowUp(screen, ask=not options.json, again=prepare, shell=open_shell)
    id, going_on = request, True
    while going_on:
        rebuilds = plan.rebuilds(again, request)
        submit = BuildGraph(
            protocol=PROTOCOL,
            request=id,
            title=f"{plan.graph.system} for {user()}",
            steps=(*plan.step_specs(), *rebuilds),
            goals=rest or (*plan.goal_keys, *(step.key for step in rebuilds)),
            along=() if rest else plan.along,
            keep_going=options.keep_going or bool(rest),
            fail_fast=options.fail_fast,
        )
        with (
            store.reserve([*plan.keys.values(), *(step.key for step in rebuilds)]),
            contextlib.closing(Connection(in_directory(fabric.directory), "follow")) as line,
        ):
            check = page.checking(fabric.check, id, screen) if page else fabric.check
            session = Session(submit, line, screen, check, verbose=options.verbose)
            session.follow("{}; built steps are kept, and the same command goes on with the rest")
        complete_logs(screen, store)
        failed(session, settings, hint)
        id, going_on = new_request(), follow_up.wanted(session, plan.graph)
    if page is None:  # it shows what the broker knows
        fabric.stop()
    session.judge(plan.graph.system, follow_up.failed)
    return plan, f"{session.counts()} in {duration(time.monotonic() - began)}"


def _lacking(plan: Plan, store: Store) -> dict[str, str]:
    """Key -> name of the plan's steps that the store lacks."""
    keys = {plan.keys[step.id]: step.name for step in plan.steps}
    there = store.has(keys)
    return {key: name for key, name in keys.items() if key not in there}


def _require_architecture(plan: Plan, settings: Settings, lacking: Mapping[str, str]) -> None:
    """FabricError if this machine does not build for the architecture of ``lacking`` steps."""
    here = built_architectures(settings)
    arch = plan.graph.arch
    if arch in here:
        return
    first = next(iter(lacking.values()), plan.graph.root.name)
    mine = " and ".join(here)
    named = ", ".join(f'"{one}"' for one in (*here, arch))
    raise FabricError(
        f"{plan.graph.path}: {first} has to be built for {arch}, and this machine builds {mine}."
        f" Build it on a farm that has a worker for {arch}: --controller HOST."
        f" If programs for {arch} run here, set in {config_path()}: architectures = [{named}]"
    )
