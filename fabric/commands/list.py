"""``list``: lists the builds that the controller knows."""

from __future__ import annotations

import argparse

from fabric.client.controller import open_controller
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import facts, print_json
from fabric.config import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    with open_controller(settings) as controller:
        infos = controller.query("requests").requests
    if options.json:
        print_json(facts(infos))
    else:
        print("\n".join(tables.warned(controller.warning, tables.requests(infos))))
    return 0
