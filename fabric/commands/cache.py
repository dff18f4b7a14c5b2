"""``cache check``: reads every file of the cache, and repairs or removes damaged ones."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fabric.building.workspace import Workspace
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import FabricError
from fabric.host.cancel import CancelToken
from fabric.host.shared_files import sha256_of
from fabric.trove.artifacts.health import Health
from fabric.trove.configured import open_sources, open_store
from fabric.trove.sources.housekeeping import check as check_repositories

#: Exit code when something was damaged, repaired or not: a machine failed.
DAMAGED = 4
_AGAIN = "it is made again when it is needed"
#: Seconds between two lines of progress.
PROGRESS_EVERY = 2.0


class Finding(NamedTuple):
    """Something damaged: its kind and name, the damage, and the consequence."""

    kind: str
    name: str
    why: str
    then: str


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "action", choices=["check"], help="read every file; repair or remove damaged ones"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    progress = _Progress(quiet=options.json)
    found: list[Finding] = []
    for finding in _check(settings, progress):
        found.append(finding)
        progress.print(f"{finding.kind} {finding.name}: {finding.why}; {finding.then}")
    if options.json:
        findings = [finding._asdict() for finding in found]
        print_json({"read": progress.counts, "damaged": findings})
    else:
        read = ", ".join(f"{count} {kind}" for kind, count in progress.counts.items() if count)
        print(f"read: {read or 'nothing'}")
        steps = sum(finding.kind == "step" for finding in found)
        rebuilt = f"; {steps} steps are built again by the next build that needs them"
        print(f"{len(found)} damaged{rebuilt * (steps > 0)}" if found else "nothing is damaged")
    return DAMAGED if found else 0


def _check(settings: Settings, progress: _Progress) -> Iterator[Finding]:
    store = open_store(settings)
    for key, why in Health(store).examine(progress.read):
        yield Finding("step", key, why, "it is removed")
    for copy in sorted(store.copies.folder.glob("*")):
        progress.read("copies")
        if sha256_of(copy) != copy.name:
            copy.unlink(missing_ok=True)
            yield Finding("copy", copy.name, "it has another digest", "it is fetched again")
    sources = open_sources(settings)
    for file in sorted(sources.root.glob("downloads/" + "[0-9a-f]" * 64)):
        progress.read("downloads")
        if sha256_of(file) != file.name:
            file.unlink(missing_ok=True)
            yield Finding("download", file.name, "it has another digest", "it is fetched again")
    for name, why, then in check_repositories(sources.root, lambda: progress.read("repositories")):
        yield Finding("repository", name, why, then)
    with Workspace(settings.work_dir, store, sources) as workspace:
        yield from _check_trees(workspace, progress)
        exclusively = workspace.session.exclusively
        for tree in sources.exports.check(exclusively, lambda: progress.read("source trees")):
            yield Finding("source tree", tree, "it has another content than its name", _AGAIN)


def _check_trees(workspace: Workspace, progress: _Progress) -> Iterator[Finding]:
    """Compare layers with the store, and merged trees, which link the files of layers, with their
    records.
    """
    for path in sorted((workspace.root / "layers").glob("[!.]*")):
        progress.read("layers")
        repaired: list[str] = []
        try:
            with workspace.using():
                workspace.layers.check(path.name, CancelToken(), repaired.append)
        except FabricError as error:  # the store does not have it
            _remove(workspace, path)
            yield Finding("layer", path.name, str(error), _AGAIN)
        for text in repaired:
            yield Finding("layer", path.name, text, "done")
    for path in sorted((workspace.root / "merged").glob("[!.]*")):
        progress.read("merged trees")
        if not workspace.layers.is_believed(path):
            _remove(workspace, path)
            yield Finding("merged tree", path.name, "it differs from its record", _AGAIN)


def _remove(workspace: Workspace, path: Path) -> None:
    """Remove it unless a build uses it, which checks it by itself."""
    with workspace.session.exclusively(path.name) as unused:
        if unused:
            workspace.session.discard(workspace.set_aside(path))


class _Progress:
    """Counts the files read, and prints the counts from time to time on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.counts: dict[str, int] = {}
        self._quiet = quiet
        self._due = time.monotonic() + PROGRESS_EVERY

    def read(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + PROGRESS_EVERY
            self.print(", ".join(f"{count} {kind}" for kind, count in self.counts.items()))

    def print(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)
