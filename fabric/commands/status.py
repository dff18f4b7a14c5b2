"""``status``: prints the state of the farm or of one build; ``--watch`` keeps it up to date.

Without a controller, the farm is the builds that run on this machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from fabric.client.controller import Controller
from fabric.client.controllers import BuildEnded, Controllers
from fabric.client.render import Board
from fabric.client.request import OVER
from fabric.commands.shared import tables
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import facts, print_json
from fabric.config import Settings
from fabric.wire.messages import RequestInfo

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
    with Controllers(settings) as controllers:
        known = controllers.request(options.request) if options.request else None

        def state() -> State:
            return _of_request(*known) if known else _of_farm(controllers)

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


def _of_farm(controllers: Controllers) -> State:
    live = [one for one in controllers.requests() if one.state not in OVER]
    answers = controllers.ask(lambda one: one.query("workers").workers)
    workers = [one for infos in answers for one in infos]
    warning = controllers.warning
    data = {"requests": facts(live), "workers": facts(workers), "warning": warning}
    lines = tables.joined(tables.requests(live), tables.workers(workers))
    lines = (not workers and controllers.none()) or lines
    return data, tables.warned(warning, lines), False


def _of_request(controller: Controller, known: RequestInfo) -> State:
    try:
        info = controller.request(known.request)
        update = controller.update(known.request)
    except BuildEnded as ended:
        return {**facts(known), "message": str(ended)}, [f"{known.title}: {ended}"], True
    data = {**facts(info), "steps": facts(update.steps), "warning": controller.warning}
    lines = tables.warned(controller.warning, tables.request(info, update))
    return data, lines, info.state in OVER
