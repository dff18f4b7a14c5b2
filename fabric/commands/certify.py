"""``certify``: builds steps once more, under other conditions, and compares the results.

Most modules are imported after the zygote (see `fabric.client.embedded`) is forked.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.client.embedded import EmbeddedFabric
from fabric.commands.shared.arguments import add_json, add_limits, add_locked, add_verbose
from fabric.commands.shared.output import save
from fabric.config import Settings
from fabric.errors import FabricError

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.client.render import Screen
    from fabric.client.session import Session
    from fabric.definitions.graph import Graph
    from fabric.plan import Plan
    from fabric.trust.seal import Seal


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_limits(parser)
    add_locked(parser)
    add_verbose(parser)
    parser.add_argument("system", metavar="SYSTEM", help="system morph")
    parser.add_argument(
        "chunks",
        nargs="*",
        default=[],
        metavar="CHUNK",
        help="certify only these (default: the system and all its chunks)",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        type=Path,
        help="write the certificate to a file, signed with this machine's key; none is written if"
        " a step differs",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    # options of ``build``
    options.keep_going = True
    options.fail_fast = options.detach = options.explain = False
    seal = None
    if options.to is not None:
        from fabric.commands.shared.vouched import require_trust

        if not os.access(options.to.parent, os.W_OK):  # not after hours
            raise FabricError(f"{options.to}: no file can be written in {options.to.parent}")
        seal = require_trust(settings)
        seal.prepare()
    if settings.controller:
        return _on_farm(options, settings, seal)
    with EmbeddedFabric(settings) as fabric:
        from fabric.client.render import opened_screen
        from fabric.commands.shared.local_build import follow_here
        from fabric.commands.shared.plans import open_plan, report_edits, report_unpinned
        from fabric.commands.shared.signals import interrupt_on_signals
        from fabric.trove.sources.build_refs import new_request

        interrupt_on_signals()
        with opened_screen(options.json) as screen:
            project, plan = open_plan(
                settings, options.system, options.chunks, locked=options.locked, clean=True
            )
            report_edits(project, plan.graph, plan.goals)
            report_unpinned(project.unpinned(plan.graph, plan.goals))
            ids = _certified(plan.graph, options.chunks)
            followed = follow_here(
                options,
                settings,
                fabric,
                screen,
                project.store,
                plan,
                ids,
                new_request(),
                lambda: plan,
                shell=None,
            )
            return _report(options, screen, project, plan, ids, followed.session, seal)


def _on_farm(options: argparse.Namespace, settings: Settings, seal: Seal | None) -> int:
    from fabric.client.controller import open_connection
    from fabric.client.render import opened_screen
    from fabric.commands.shared.plans import open_project
    from fabric.commands.shared.remote_build import follow_remotely
    from fabric.commands.shared.signals import interrupt_on_signals

    interrupt_on_signals()
    began = time.monotonic()
    project = open_project(settings, options.system)
    system = project.locate(options.system, Path.cwd())
    ids = _certified(project.graph(system), options.chunks)
    options.rebuild = ids
    with opened_screen(options.json) as screen, open_connection(settings) as connection:
        followed = follow_remotely(
            options, settings, project, system, connection, screen, began, ask=False, planned=True
        )
        assert followed is not None, "it waits for the end"
        assert followed.plan is not None, "it is wanted"
        return _report(options, screen, project, followed.plan, ids, followed.session, seal)


def _certified(graph: Graph, names: list[str]) -> tuple[str, ...]:
    """Ids of the steps that ``names`` mean; by default of the system and its chunks."""
    from fabric.definitions.select import find_built, needed

    if names:
        return find_built(graph, names)
    within = needed(graph, (graph.root.id,))
    return tuple(one.id for one in graph.steps if one.kind != "stratum" and one.id in within)


def _report(
    options: argparse.Namespace,
    screen: Screen,
    project: Project,
    plan: Plan,
    ids: tuple[str, ...],
    session: Session,
    seal: Seal | None,
) -> int:
    from fabric.building.certificate import KIND
    from fabric.commands.shared.certified import certificate_of, report_certificate

    if session.mirror.state == "cancelled":
        session.judge(plan.graph.system)
    certificate = certificate_of(project.store, plan, ids, session.mirror)
    report_certificate(screen, project, certificate, contents=not options.json)
    if seal is not None:
        document = seal.close(KIND, certificate.json()) + b"\n"
        save(document, options.to, "the certificate")
        screen.say(f"  written to {options.to}")
    return 0
