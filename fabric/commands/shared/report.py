"""Reports the result of a build: artifacts, failures and logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fabric.client.failures import Failure, Failures
from fabric.client.render import Screen, size
from fabric.client.user_logs import complete
from fabric.config import Settings
from fabric.digest import Digest
from fabric.errors import MachineFault, StoreError, command
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

if TYPE_CHECKING:
    from fabric.client.session import Session
    from fabric.wire.messages import StepState


class Built(NamedTuple):
    """A goal of a build, now built."""

    name: str
    kind: str
    key: str


def report(screen: Screen, store: Store, goals: Sequence[Built], system: str, how: str) -> None:
    """Report that the goals are built, ``how``, and where they are.

    MachineFault if the store no longer has one.
    """
    store.use([goal.key for goal in goals])
    for goal in goals:
        manifest = store.manifest(goal.key)
        if manifest is None:
            raise MachineFault(
                f"{goal.name}: built, but the store {store.url} no longer has it; build it again"
            )
        _report_goal(screen, goal, how, manifest, store.shown)
        _suggest(screen, goal, system)
    store.flush()


def report_remote(
    screen: Screen, store: Store, goals: Sequence[Built], system: str, how: str
) -> None:
    """`report` for a build on a farm, whose store may not be the one of our settings."""
    for goal in goals:
        manifest, why = None, f"{store.shown} does not have it"
        try:
            manifest = store.manifest(goal.key)
        except StoreError as error:
            why = str(error)
        _report_goal(screen, goal, how, manifest, store.shown)
        if manifest is None:
            screen.say(f"  {why}; to have its files, set `artifacts` to the farm's store", "yellow")
        elif system:
            _suggest(screen, goal, system)


def failed(session: Session, settings: Settings, hint: Callable[[StepState], str]) -> None:
    """Report the steps that failed, and remember them for ``show``."""
    session.report_failures(hint)
    failures = Failures(settings.state_dir / "failures")
    with contextlib.suppress(OSError):  # a full disk: the report above is enough
        for step, log in session.failed():
            if not step.fault:
                where = os.fsencode(log).decode(errors="backslashreplace")
                failures.note(Digest(step.key), Failure(datetime.now(UTC), step.message, where))


def complete_logs(screen: Screen, store: Store) -> None:
    """Complete the logs that are here in part, and report those that cannot be."""
    for text in complete(Path.cwd(), store):
        screen.say(text, "yellow")


def _report_goal(
    screen: Screen, goal: Built, how: str, manifest: Manifest | None, url: str
) -> None:
    artifacts = manifest.artifacts if manifest else ()
    screen.event(
        "built",
        name=goal.name,
        key=goal.key,
        store=url,
        artifacts={one.name: one.blob.sha256 if one.blob else None for one in artifacts},
    )
    screen.say(f"{goal.name} is built: {how}", "bold green")
    total = size(sum(one.blob.size for one in artifacts if one.blob))
    screen.say(f"  key    {goal.key[:16]}" + (f", {total} in {url}" if manifest else ""))
    for remark in manifest.remarks if manifest else ():
        screen.say(f"  note   {remark}", "yellow")


def _suggest(screen: Screen, goal: Built, system: str) -> None:
    if goal.kind == "system":
        screen.say(f"  files  {command('checkout', system, '--to', 'DIRECTORY')}")
        screen.say(f"  disk   {command('image', system, '--to', goal.name + '.img')}")
    else:
        screen.say(f"  files  {command('checkout', system, goal.name, '--to', 'DIRECTORY')}")
