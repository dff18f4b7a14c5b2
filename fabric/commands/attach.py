"""``attach``: follows a build on the controller, with its logs in the current folder."""

from __future__ import annotations

import argparse

from fabric.client.controller import SHOWN, Controller, open_connection
from fabric.client.render import opened_screen
from fabric.client.session import Session
from fabric.commands.shared.arguments import add_json, add_verbose
from fabric.commands.shared.remote_build import Patience, finish, report_ended
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import command
from fabric.trove.configured import open_store


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_verbose(parser)
    parser.add_argument("request", metavar="ID", help="ID of a build, or its beginning")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    with opened_screen(options.json) as screen, open_connection(settings) as connection:
        waits = Patience(settings.patience, screen)
        known = Controller(connection, settings.patience, waits.report).request(options.request)
        session = Session(
            known.request, connection, screen, since=known.since, verbose=options.verbose
        )
        session.follow(
            f"the build goes on; `{command('attach', known.request[:SHOWN])}` follows it again"
            if known.detached
            else "the build goes on as long as its requester follows it"
        )
        store = open_store(settings)
        report_ended(session, settings, store, screen)
        finish(session, store, screen)
    return 0
