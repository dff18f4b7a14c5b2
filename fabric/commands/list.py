"""``list``: lists the builds that the controller knows, or that run on this machine."""

from __future__ import annotations

import argparse

from fabric.client.controllers import Controllers
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import facts, print_json
from fabric.config import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    with Controllers(settings) as controllers:
        infos = controllers.requests()
    if options.json:
        print_json(facts(infos))
    else:
        lines = (not infos and controllers.none()) or tables.requests(infos)
        print("\n".join(tables.warned(controllers.warning, lines)))
    return 0
