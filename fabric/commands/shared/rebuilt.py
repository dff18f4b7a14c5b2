"""Compares steps that were built once more with the first results, and reports differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from fabric.building.certificate import FILES, build_of
from fabric.building.compare import FileChange, compare
from fabric.client.render import Screen
from fabric.commands.shared.files import file_line, tree_of
from fabric.errors import StoreError, command
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

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
                screen.say(f"  {store.shown} does not have both builds of {key[:SHOWN]}", "yellow")
                continue
            with store.reserve([key, again]):
                _report(screen, store, first, second)
        except StoreError as error:  # what was ordered is built
            screen.say(f"  {key[:SHOWN]} cannot be compared: {error}", "yellow")


def _report(screen: Screen, store: Store, first: Manifest, second: Manifest) -> None:
    name = first.name
    same = build_of(first).artifacts == build_of(second).artifacts
    files = differing(store, first, second)
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
    for line in file_lines(files[:FILES], len(files)):
        screen.say(f"  {line}")
    keys = first.key[:SHOWN], second.key[:SHOWN]
    screen.say(f"  compare  {command('diff', *keys)}")
    screen.say(f"  replace  {command('artifact', 'delete', keys[0])}, then build it again")


def differing(store: Store, first: Manifest, second: Manifest) -> tuple[FileChange, ...]:
    """The files that differ between two builds of a step.  StoreError if they cannot be read."""
    if build_of(first).artifacts == build_of(second).artifacts:
        return ()
    return tuple(compare(tree_of(store, first), tree_of(store, second)))


def file_lines(files: Sequence[FileChange], total: int) -> Iterator[str]:
    """A line for each of ``files``, the first of ``total``."""
    for one in files:
        yield file_line(one)
    if total > len(files):
        yield f"and {total - len(files)} more files"
