"""``status``: prints the state of the farm or of one build; ``--watch`` keeps it up to date."""

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

#: Seconds between two queries.
WATCH_EVERY = 1.0

#: The state as JSON and as lines of text, and whether it is final.
State = tuple[object, list[str], bool]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("request", metavar="ID", nargs="?", help="ID of a build, or its beginning")
    parser.add_argument(
        "--watch", action="store_true", help="update the output until it is over or interrupted"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    with open_controller(settings) as controller:
        known = controller.request(options.request).request if options.request else ""

        def state() -> State:
            return _of_request(controller, known) if known else _of_farm(controller)

        if options.watch:
            _watch(state, options.json)
            return 0
        data, lines, _ = state()
    if options.json:
        print_json(data)
    else:
        print("\n".join(lines))
    return 0


def _watch(state: Callable[[], State], as_json: bool) -> None:
    """Show the state again and again, until it is final or the user presses Ctrl-C."""
    over = False
    with Board() as board:
        try:
            while not over:
                data, lines, over = state()
                board.show([json.dumps(data)] if as_json else lines)
                if not over:
                    time.sleep(WATCH_EVERY)
        except KeyboardInterrupt:  # ends the command without an error
            pass


def _of_farm(controller: Controller) -> State:
    requests = controller.query("requests").requests
    workers = controller.query("workers").workers
    live = [one for one in requests if one.state not in OVER]
    data = {"requests": facts(live), "workers": facts(workers), "warning": controller.warning}
    lines = tables.joined(tables.requests(live), tables.workers(workers))
    return data, tables.warned(controller.warning, lines), False


def _of_request(controller: Controller, id: str) -> State:
    info = controller.request(id)
    update = controller.update(id)
    data = {**facts(info), "steps": facts(update.steps), "warning": controller.warning}
    lines = tables.warned(controller.warning, tables.request(info, update))
    return data, lines, info.state in OVER
