"""``logs``: prints the log of a step, cached or not, that any user built or is building."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric.commands.shared.arguments import add_json, add_system
from fabric.commands.shared.keys import find_manifest, is_key, require_one
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import find_chunk
from fabric.config import Settings
from fabric.errors import FabricError, command
from fabric.host.terminal import clean_pieces, write_bytes
from fabric.trove.configured import open_store

if TYPE_CHECKING:
    from fabric.client.controller import Controller
    from fabric.jobs import Manifest
    from fabric.trove.artifacts.store import Store
    from fabric.wire.messages import LogInfo

#: Bytes read from the store at once.
PIECE = 1024 * 1024
#: Seconds between two queries for more of a log, and for whether its attempt still runs.
FOLLOW_EVERY = 0.2
STATE_EVERY = 2.0


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_system(parser)
    parser.add_argument(
        "chunk",
        metavar="CHUNK|KEY",
        help="name of a chunk, stratum or system, or at least 8 digits of a cache key",
    )
    parser.add_argument("--follow", action="store_true", help="print the log as it grows")
    parser.add_argument("--request", metavar="ID", help="print the log of this build")


def run(options: argparse.Namespace, settings: Settings) -> int:
    if settings.controller:
        from fabric.client.controller import open_controller

        with open_controller(settings) as controller:
            if info := _choose(controller, options.chunk, options.request):
                _print_remote(controller, info, options)
                return 0
    elif options.request or options.follow:
        raise FabricError(
            "--follow and --request need a controller, and none is set; the log of a build here"
            " grows in the folder where it was started: tail -f build-step-NAME.log"
        )
    _print_stored(options, settings)
    return 0


def _choose(controller: Controller, name: str, request: str | None) -> LogInfo | None:
    """The log of the running attempt, else of the last one; None if there is none."""
    infos = list(controller.query("logs", name).logs)
    if request:
        steps = controller.update(controller.request(request).request).steps
        keys = {step.key for step in steps}
        infos = [info for info in infos if info.key in keys]
        if not infos:
            raise FabricError(f"{name}: build {request} has no log of this step")
    if is_key(name):
        require_one(name, list(dict.fromkeys(info.key for info in infos)))
    infos.sort(key=lambda info: (info.state == "running", info.fence))
    return infos[-1] if infos else None


def _print_remote(controller: Controller, info: LogInfo, options: argparse.Namespace) -> None:
    pieces = _pieces(controller, info, follow=options.follow)
    if options.json:
        log = b"".join(pieces).decode(errors="replace")
        print_json(
            {"name": info.name, "key": info.key, "state": info.state, "file": info.log, "log": log}
        )
        return
    _print(pieces)


def _print(pieces: Iterator[bytes]) -> None:
    """Print a log: as clean text on a terminal, else byte for byte."""
    if sys.stdout.isatty():
        for text in clean_pieces(pieces):
            print(text, end="", flush=True)
        return
    for data in pieces:
        write_bytes(data)


def _pieces(controller: Controller, info: LogInfo, *, follow: bool) -> Iterator[bytes]:
    """A log from its beginning to its end, or to its present end without ``follow``."""
    offset, state_due = 0, time.monotonic() + STATE_EVERY
    while True:
        piece = controller.read_log(info.key, info.fence, offset)
        if piece is None:
            if offset:
                return
            raise FabricError(f"{info.name}: the controller no longer has its log {info.log}")
        if piece.data:
            yield piece.data
            offset += len(piece.data)
        if 0 <= piece.size <= offset or not (piece.data or follow):
            return
        if not piece.data:
            time.sleep(FOLLOW_EVERY)
            if time.monotonic() >= state_due:
                state_due = time.monotonic() + STATE_EVERY
                follow = any(
                    (one.fence, one.state) == (info.fence, "running")
                    for one in controller.query("logs", info.key).logs
                )


def _print_stored(options: argparse.Namespace, settings: Settings) -> None:
    """Find the log by its key or the definitions, in the store."""
    if is_key(options.chunk):
        store = open_store(settings)
        manifest = find_manifest(store, options.chunk)
    else:
        store, manifest = _find(options, settings)
    if manifest.log is None:
        raise FabricError(f"{manifest.name}: the store has this step without a log")
    if options.json:
        print_json(
            {
                "name": manifest.name,
                "key": manifest.key,
                "builder": manifest.builder,
                "seconds": manifest.seconds,
                "log": store.read(manifest.log).decode(errors="replace"),
            }
        )
        return
    with store.open(manifest.log, manifest.key) as log:  # a range of it could not be verified
        _print(iter(lambda: log.read(PIECE), b""))


def _find(options: argparse.Namespace, settings: Settings) -> tuple[Store, Manifest]:
    project, plan, step = find_chunk(settings, options.chunk, options.system)
    manifest = project.store.manifest(plan.keys[step.id])
    if manifest is None:
        raise FabricError(
            f"{step.name}: not built yet with these inputs, so the store has no log; run:"
            f" {command('build', plan.graph.path, step.name)}; a failed build leaves"
            f" {plan.log_names[plan.keys[step.id]]} in the folder where it was started"
        )
    return project.store, manifest
