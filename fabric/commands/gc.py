"""``gc``: removes files that no build used for some days and that nothing kept needs."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path

from fabric.building.unused import left_behind, remove_unused
from fabric.building.workspace import Workspace
from fabric.client.render import size
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.keys import pinned
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_graph, plan_of
from fabric.config import Settings
from fabric.controller.spools import LEFTOVER
from fabric.errors import FabricError
from fabric.host.files import clear
from fabric.host.shared_files import Tally
from fabric.host.terminal import progress
from fabric.trove.artifacts.gc import Gone
from fabric.trove.configured import open_sources, open_store
from fabric.trove.sources.build_refs import Builds

DAY = 86400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--keep-days",
        type=float,
        default=7.0,
        metavar="N",
        help="keep files used in the last N days (default 7)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be removed; remove nothing"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="SYSTEM",
        help="keep everything that this system needs",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if not options.keep_days >= 0:  # NaN is not, either
        raise FabricError(f"--keep-days {options.keep_days:g}: give a number of days, or 0")
    keep = pinned(settings)
    for system in options.keep:
        project, graph = open_graph(settings, system)
        keep |= set(plan_of(project, graph).keys.values())
    store = open_store(settings)
    builds = Builds(settings.trove_dir / "builds.git")
    age, dry = options.keep_days * DAY, options.dry_run
    report = _Report(json=options.json, dry=dry)
    # Local files first: a user who cannot delete in the store may still want room on their disk.
    report.add("copies", store.copies.gc(age, dry_run=dry).bytes)
    # logs that former brokers left
    logs = settings.state_dir / "logs"
    report.add("logs", _gc_files(logs, max(age, LEFTOVER), dry_run=dry))
    report.add("facts", _gc_files(settings.sbom_dir, age, dry_run=dry))
    report.add("orders", builds.prune(age, dry_run=dry))
    sources = open_sources(settings)
    with Workspace(settings.work_dir, store, sources, sweep=False) as workspace:
        for kind, freed in sources.gc(age, workspace.session.exclusively, dry_run=dry).items():
            report.add(kind, freed)
        layers, busy = remove_unused(workspace, keep, age, dry_run=dry)
        report.add("layers", layers.bytes)
        report.add("scratch", left_behind(workspace).bytes)
        if not dry:
            workspace.sweep()
            workspace.close(float("inf"))
    if busy:
        report.note(f"{busy} layers stay, which a worker here may need; run gc again when it ends")
    gone = store.gc(keep, older_than=age, dry_run=dry)
    report.add("artifacts", gone.manifest_bytes + gone.hint_bytes)
    report.add("blobs", gone.blob_bytes)
    if gone.waiting:
        report.note(
            f"{gone.waiting} blobs ({size(gone.waiting_bytes)}) stay: no manifest lists them, but"
            " they are so new that an upload may still write one"
        )
    usage = store.usage()
    report.end(gone, {"steps": usage.manifests, "bytes": usage.bytes}, busy, store.shown)
    return 0


class _Report:
    """Prints how much was freed: a line for each kind, or one JSON document."""

    def __init__(self, *, json: bool, dry: bool) -> None:
        self._json = json
        self._dry = dry
        self._freed: dict[str, int] = {}

    def add(self, kind: str, freed: int) -> None:
        self._freed[kind] = freed
        if not self._json:
            print(f"{kind:14}{size(freed):>10}", flush=True)

    def note(self, text: str) -> None:
        if not self._json:
            progress(text)

    def end(self, gone: Gone, left: dict[str, int], busy: int, url: str) -> None:
        total = sum(self._freed.values())
        if self._json:
            facts = {"dry_run": self._dry, "freed": self._freed, "bytes": total}
            steps = {"steps": gone.manifests, "blobs": gone.blobs}
            waiting = {"blobs": gone.waiting, "bytes": gone.waiting_bytes}
            print_json(facts | steps | {"waiting": waiting, "layers_in_use": busy, "left": left})
            return
        would = "would be " if self._dry else ""
        removed = f"{gone.manifests} steps and {gone.blobs} blobs {would}removed"
        print(f"{removed}, {size(total)} {would}freed")
        print(f"left: {left['steps']} steps, {size(left['bytes'])} in {url}")


def _gc_files(folder: Path, age: float, *, dry_run: bool) -> int:
    """Remove what is older than ``age`` seconds in a folder; returns how many bytes that frees."""
    tally = Tally()
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > age:
                tally.add(file)
                if not dry_run:
                    clear(file)
    return tally.bytes
