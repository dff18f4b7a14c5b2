"""``why``: explains what a step or a build waits for, and which workers can take it."""

from __future__ import annotations

import argparse

from fabric.client.controller import open_controller
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.config import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("what", metavar="STEP|ID", help="name of a step, or ID of a build")


def run(options: argparse.Namespace, settings: Settings) -> int:
    with open_controller(settings) as controller:
        infos = controller.query("requests").requests
        # the beginning of an id is enough for a build; only the controller knows steps
        meant = [one.request for one in infos if one.request.startswith(options.what)]
        about = meant[0] if len(meant) == 1 else options.what
        answer = controller.query("why", about)
    lines = tables.warned(controller.warning, list(answer.lines))
    if options.json:
        print_json([line for line in lines if line])
    else:
        print("\n".join(lines))
    return 0
