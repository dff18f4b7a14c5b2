"""``status``: how it stands with the farm, or with one build; ``--watch`` goes on showing it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from fabric.client.controller import Controller, open_controller
from fabric.client.render import Board
from fabric.client.request import OVER
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import facts, print_json
from fabric.config import Settings

#: Seconds between two looks.
WATCH_EVERY = 1.0

#: What there is to see for programs, and for people; and whether nothing more will come.
Picture = tuple[object, list[str], bool]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("request", metavar="ID", nargs="?", help="a build")
    parser.add_argument("--watch", action="store_true", help="go on showing it")


def run(options: argparse.Namespace, settings: Settings) -> int:
    with open_controller(settings) as controller:
        known = controller.request(options.request).request if options.request else ""

        def look() -> Picture:
            return _of_request(controller, known) if known else _of_farm(controller)

        if options.watch:
            _watch(look, options.json)
            return 0
        told, lines, _ = look()
    if options.json:
        print_json(told)
    else:
        print("\n".join(lines))
    return 0


def _watch(look: Callable[[], Picture], as_json: bool) -> None:
    """Show it again and again, until it is over or Ctrl-C."""
    over = False
    with Board() as board:
        try:
            while not over:
                told, lines, over = look()
                board.show([json.dumps(told)] if as_json else lines)
                if not over:
                    time.sleep(WATCH_EVERY)
        except KeyboardInterrupt:  # the way to end it
            pass


def _of_farm(controller: Controller) -> Picture:
    requests = controller.query("requests").requests
    workers = controller.query("workers").workers
    live = [one for one in requests if one.state not in OVER]
    told = {"requests": facts(live), "workers": facts(workers), "warning": controller.warning}
    lines = tables.joined(tables.requests(live), tables.workers(workers))
    return told, tables.warned(controller.warning, lines), False


def _of_request(controller: Controller, id: str) -> Picture:
    info = controller.request(id)
    update = controller.update(id)
    told = {**facts(info), "steps": facts(update.steps), "warning": controller.warning}
    lines = tables.warned(controller.warning, tables.request(info, update))
    return told, lines, info.state in OVER
