"""``build``: builds a system, or parts of it, on this machine or on a farm.

Most modules are imported after the zygote (see `fabric.client.embedded`) is forked: it loads the
programs of the fabric in the meantime.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from fabric.client.embedded import EmbeddedFabric
from fabric.commands.shared.arguments import add_json, add_limits, add_locked, add_verbose
from fabric.config import Settings
from fabric.errors import FabricError

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.commands.shared.web_page import WebPage
    from fabric.plan import Plan


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
        from fabric.client.render import duration, opened_screen
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
                if options.explain:
                    from fabric.commands.shared.explained import report_reasons

                    report_reasons(screen, project, plan)
                from fabric.commands.shared.local_build import follow_here
                from fabric.trove.sources.build_refs import new_request

                request = new_request()
                plan, session, failed, seconds = follow_here(
                    options,
                    settings,
                    fabric,
                    screen,
                    project.store,
                    plan,
                    again,
                    request,
                    lambda: _plan(options, settings)[1],
                    shell=None if options.json else partial(_open_shell, options, settings),
                    page=page,
                )
                session.judge(plan.graph.system, failed)
                how = f"{session.counts()} in {duration(seconds)}"
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


def _open_shell(options: argparse.Namespace, settings: Settings, name: str) -> None:
    """Open the tree of a failed chunk."""
    from fabric.commands import shell  # loads what builds; few builds need it

    parser = argparse.ArgumentParser()
    shell.arguments(parser)
    shell.run(parser.parse_args(["--system", options.system, "--", name]), settings)


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
