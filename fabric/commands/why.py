"""``why``: explains what a step or a build waits for, and which workers can take it."""

from __future__ import annotations

import argparse

from fabric.client.controller import Controller
from fabric.client.controllers import Controllers
from fabric.client.request import OVER
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.config import Settings
from fabric.errors import FabricError, MachineFault, suggest


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("what", metavar="STEP|ID", help="name of a step, or ID of a build")


def run(options: argparse.Namespace, settings: Settings) -> int:
    lines: list[str] = []
    unknown: list[FabricError] = []
    with Controllers(settings) as controllers:
        # the beginning of an id is enough for a build; only the controller knows steps
        ids = [one.request for one in controllers.requests()]
        meant = [one for one in ids if one.startswith(options.what)]
        about = meant[0] if len(meant) == 1 else options.what

        def ask(controller: Controller) -> None:
            try:
                lines.extend(controller.query("why", about).lines)
            except MachineFault:
                raise
            except FabricError as error:
                unknown.append(error)

        if not controllers.ask(ask):
            raise FabricError("\n".join(controllers.none()))
        if not lines:
            steps = {name for names in controllers.ask(_steps) for name in names}
            raise FabricError(f"{unknown[0]}{suggest(about, steps)}")
        lines = tables.warned(controllers.warning, lines)
    if options.json:
        print_json([line for line in lines if line])
    else:
        print("\n".join(lines))
    return 0


def _steps(controller: Controller) -> set[str]:
    """The names of the steps of builds that are not over."""
    infos = controller.query("requests").requests
    live = [one.request for one in infos if one.state not in OVER]
    return {step.name for request in live for step in controller.update(request).steps}
