"""``workers``: lists the workers and their steps, drains and resumes them."""

from __future__ import annotations

import argparse

from fabric.client.controller import open_controller
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import facts, print_json
from fabric.config import Settings
from fabric.errors import FabricError, command


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    help = "drain: assign no new jobs to it; resume: assign jobs again"
    parser.add_argument("action", nargs="?", choices=["drain", "resume"], help=help)
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a worker")


def run(options: argparse.Namespace, settings: Settings) -> int:
    if bool(options.action) != bool(options.name):
        raise FabricError(f"no worker is named; run: {command('workers')} drain|resume NAME")
    with open_controller(settings) as controller:
        if options.action:
            answer = controller.command(options.action, options.name)
            lines = list(answer.lines) or [f"{options.name}: {options.action}"]
            answered: object = {"lines": lines}
        else:
            infos = controller.query("workers").workers
            lines = tables.warned(controller.warning, tables.workers(infos))
            answered = facts(infos)
    if options.json:
        print_json(answered)
    else:
        print("\n".join(lines))
    return 0
