"""``cancel``: cancels a build of any user; steps that other builds need go on."""

from __future__ import annotations

import argparse

from fabric.client.controller import SHOWN
from fabric.client.controllers import Controllers
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.config import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("request", metavar="ID", help="ID of a build, or its beginning")


def run(options: argparse.Namespace, settings: Settings) -> int:
    with Controllers(settings) as controllers:
        controller, known = controllers.request(options.request)
        answer = controller.command("cancel", known.request)
    lines = list(answer.lines) or [f"{known.request[:SHOWN]}, {known.title}: cancelled"]
    if options.json:
        print_json({"request": known.request, "lines": lines})
    else:
        print("\n".join(lines))
    return 0
