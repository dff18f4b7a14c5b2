"""``build`` on this machine: runs a request of the embedded fabric to its end."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fabric.client.embedded import EmbeddedFabric
from fabric.config import Settings, built_architectures, config_path
from fabric.errors import FabricError, command

if TYPE_CHECKING:
    from fabric.client.render import Screen
    from fabric.client.session import Session
    from fabric.commands.shared.web_page import WebPage
    from fabric.plan import Plan
    from fabric.trove.artifacts.store import Store
    from fabric.wire.messages import StepState


class Followed(NamedTuple):
    """A request that is over."""

    plan: Plan  # a retry may have changed it
    session: Session
    failed: Sequence[StepState]  # steps that failed before the last retry
    seconds: float


def follow_here(
    options: argparse.Namespace,
    settings: Settings,
    fabric: EmbeddedFabric,
    screen: Screen,
    store: Store,
    plan: Plan,
    again: Sequence[str],
    request: str,
    replan: Callable[[], Plan],
    *,
    shell: Callable[[str], object] | None,
    page: WebPage | None = None,
) -> Followed:
    """Build the plan on this machine, and the steps ``again`` once more, and report failures.

    After a failure, the user may go on: a retry takes the plan of ``replan``, and ``shell`` opens
    the tree of a failed chunk.  Without ``shell``, nobody is asked.
    """
    began = time.monotonic()
    store.prepare()
    lacking = _lacking(plan, store)
    _require_architecture(plan, settings, lacking)
    fabric.start(len(lacking) + len(again), plan.host_tools)
    # what starts meanwhile takes longer than these imports
    from fabric.client.session import Session
    from fabric.commands.shared.follow_up import FollowUp
    from fabric.commands.shared.report import complete_logs, failed
    from fabric.trove.sources.build_refs import new_request
    from fabric.trove.sources.snapshot import user
    from fabric.wire.connection import Connection
    from fabric.wire.messages import PROTOCOL, BuildGraph
    from fabric.wire.sockets import in_directory

    def hint(step: StepState) -> str:
        return f"shell: {command('shell', step.name, '--system', options.system)}"

    rest: tuple[str, ...] = ()

    def prepare(steps: tuple[str, ...]) -> None:
        nonlocal plan, rest
        if not steps:
            plan = replan()
            fabric.start(len(_lacking(plan, store)), plan.host_tools)
        rest = tuple(plan.keys[id] for id in steps)

    follow_up = FollowUp(screen, ask=shell is not None, again=prepare, shell=shell)
    id, going_on = request, True
    while going_on:
        rebuilds = plan.rebuilds(again, request)
        submit = BuildGraph(
            protocol=PROTOCOL,
            request=id,
            title=f"{plan.graph.system} for {user()}",
            steps=(*plan.step_specs(), *rebuilds),
            goals=rest or (*plan.goal_keys, *(step.key for step in rebuilds)),
            along=() if rest else plan.along,
            keep_going=options.keep_going or bool(rest),
            fail_fast=options.fail_fast,
        )
        with (
            store.reserve([*plan.keys.values(), *(step.key for step in rebuilds)]),
            contextlib.closing(Connection(in_directory(fabric.directory), "follow")) as line,
        ):
            check = page.checking(fabric.check, id, screen) if page else fabric.check
            session = Session(submit, line, screen, check, verbose=options.verbose)
            session.follow("{}; built steps are kept, and the same command goes on with the rest")
        complete_logs(screen, store)
        failed(session, settings, hint)
        id, going_on = new_request(), follow_up.wanted(session, plan.graph)
    if page is None:  # it shows what the broker knows
        fabric.stop()
    return Followed(plan, session, follow_up.failed, time.monotonic() - began)


def _lacking(plan: Plan, store: Store) -> dict[str, str]:
    """Key -> name of the plan's steps that the store lacks."""
    keys = {plan.keys[step.id]: step.name for step in plan.steps}
    there = store.has(keys)
    return {key: name for key, name in keys.items() if key not in there}


def _require_architecture(plan: Plan, settings: Settings, lacking: Mapping[str, str]) -> None:
    """FabricError if this machine does not build for the architecture of ``lacking`` steps."""
    here = built_architectures(settings)
    arch = plan.graph.arch
    if arch in here:
        return
    first = next(iter(lacking.values()), plan.graph.root.name)
    mine = " and ".join(here)
    named = ", ".join(f'"{one}"' for one in (*here, arch))
    raise FabricError(
        f"{plan.graph.path}: {first} has to be built for {arch}, and this machine builds {mine}."
        f" Build it on a farm that has a worker for {arch}: --controller HOST."
        f" If programs for {arch} run here, set in {config_path()}: architectures = [{named}]"
    )
