"""``workers``: who builds, what, and since when; draining and resuming them."""

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
    parser.add_argument("action", nargs="?", choices=["drain", "resume"])
    parser.add_argument("name", nargs="?", metavar="NAME")


def run(options: argparse.Namespace, settings: Settings) -> int:
    if bool(options.action) != bool(options.name):
        raise FabricError(f"name the worker: {command('workers')} drain|resume NAME")
    with open_controller(settings) as controller:
        if options.action:
            answer = controller.command(options.action, options.name)
            lines = list(answer.lines) or [f"{options.name}: {options.action}"]
            told: object = {"lines": lines}
        else:
            infos = controller.query("workers").workers
            lines = tables.warned(controller.warning, tables.workers(infos))
            told = facts(infos)
    if options.json:
        print_json(told)
    else:
        print("\n".join(lines))
    return 0
