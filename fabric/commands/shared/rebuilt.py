"""Compares steps that were built once more with the first results, and reports differences."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.building.compare import FileChange, compare
from fabric.client.render import Screen
from fabric.commands.shared.files import file_line, tree_of
from fabric.errors import StoreError, command
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

#: Files that are listed.
FILES = 20
#: Digits of a key that are shown.
SHOWN = 12


def report_rebuilds(screen: Screen, store: Store, rebuilds: Mapping[str, str]) -> None:
    """Report whether steps gave the same once more: key -> key of the second build.

    The store keeps both results; a build takes the first one.
    """
    for key, again in rebuilds.items():
        try:
            first, second = store.manifests([key, again])
            if first is None or second is None:
                screen.say(f"  {store.url} does not have both builds of {key[:SHOWN]}", "yellow")
                continue
            with store.reserve([key, again]):
                _report(screen, store, first, second)
        except StoreError as error:  # what was ordered is built
            screen.say(f"  {key[:SHOWN]} cannot be compared: {error}", "yellow")


def _report(screen: Screen, store: Store, first: Manifest, second: Manifest) -> None:
    name = first.name
    same = _blobs(first) == _blobs(second)
    files: list[FileChange] = []
    if not same:
        files = list(compare(tree_of(store, first), tree_of(store, second)))
    screen.event(
        "rebuilt",
        name=name,
        key=first.key,
        rebuild=second.key,
        same=same,
        files=msgspec.to_builtins(files),
    )
    if same:
        screen.say(f"{name}: built once more, with the same result", "bold green")
        return
    screen.say(f"{name}: built once more, with another result; the first one stays", "yellow")
    for one in files[:FILES]:
        screen.say(f"  {file_line(one)}")
    if len(files) > FILES:
        screen.say(f"  and {len(files) - FILES} more files")
    keys = first.key[:SHOWN], second.key[:SHOWN]
    screen.say(f"  compare  {command('diff', *keys)}")
    screen.say(f"  replace  {command('artifact', 'delete', keys[0])}, then build it again")


def _blobs(manifest: Manifest) -> list[tuple[str, str]]:
    return [(one.name, one.blob.sha256 if one.blob else "") for one in manifest.artifacts]
