"""``shell``: opens a shell in the sandbox of a chunk."""

from __future__ import annotations

import argparse

from fabric.building.shell import shell
from fabric.building.workspace import Workspace
from fabric.commands.shared.arguments import add_limits, add_system
from fabric.commands.shared.plans import find_chunk
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import FabricError, command


def arguments(parser: argparse.ArgumentParser) -> None:
    add_limits(parser)
    add_system(parser)
    parser.add_argument("chunk", metavar="CHUNK", help="name of a chunk")
    parser.add_argument(
        "argv",
        nargs="*",
        default=[],
        metavar="ARG",
        help="after --: command to run in place of a shell",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    project, plan, step = find_chunk(settings, options.chunk, options.system)
    if step.kind != "chunk":
        raise FabricError(
            f"{step.name} is a {step.kind}, and only chunks are built in a sandbox;"
            f" `{command('graph', plan.graph.path)}` lists them"
        )
    missing = set(plan.depends(step)) - project.store.has(plan.depends(step))
    if missing:
        raise FabricError(
            f"{step.name}: chunks that it needs are not built yet ({len(missing)} of"
            f" {len(plan.depends(step))}); run: {command('build', plan.graph.path, step.name)}"
        )
    with (
        project.store.reserve(plan.depends(step)),
        Workspace(settings.work_dir, project.store, project.sources) as workspace,
    ):
        return shell(plan.job(step), workspace, jobs=settings.jobs, argv=options.argv)
