"""``artifact push`` and ``pull``: copies built steps to another store, or from one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

from fabric.client.render import size
from fabric.commands.shared.keys import find_key, is_key
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_plan, report_edits
from fabric.config import Settings
from fabric.errors import FabricError, command, first_of
from fabric.host.terminal import progress, settled
from fabric.plan import Plan
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.transfer import Transfer, copy_steps, made_from
from fabric.trove.configured import open_other_store, open_store

#: Steps that a line names.
FEW = 5


class _Wanted(NamedTuple):
    """Steps to copy, and those of them without which nothing can be done with the others."""

    names: Mapping[str, str]  # cache key -> name, or the beginning of the key
    goals: frozenset[str]


def copy(options: argparse.Namespace, settings: Settings) -> int:
    """Copy what a user names; 1 if some of that is not there, or does not count."""
    source, to = _stores(options, settings)
    wanted = _wanted(options, settings, source)

    def report(done: int, total: int, moved: int) -> None:
        progress(f"{options.action}: {done} of {total} steps, {size(moved)}")

    done = copy_steps(wanted.names, source, to, report)
    settled()
    to.flush()
    lost = wanted.goals & {*done.missing, *done.refused}
    if options.json:
        print_json(_facts(done, wanted, source, to))
    else:
        _print(done, wanted, source, to)
    return 1 if lost else 0


def _stores(options: argparse.Namespace, settings: Settings) -> tuple[Store, Store]:
    """The source, and where the steps go.  FabricError if the options do not name the other."""
    pushes = options.action == "push"
    option = "--to" if pushes else "--from"
    url, wrong = (options.to, options.source) if pushes else (options.source, options.to)
    if not url or wrong:
        raise FabricError(
            f"artifact {options.action}: give the other store, a directory or a URL, as {option}"
        )
    other = open_other_store(settings, url, option, options.password)
    own = open_store(settings)
    return (own, other) if pushes else (other, own)


def _wanted(options: argparse.Namespace, settings: Settings, source: Store) -> _Wanted:
    names = options.names
    if not names:
        raise FabricError(
            f"artifact {options.action}: name a system, and some of its chunks or strata if not all"
            f" of it; or keys, which `{command('artifact', 'list')}` prints"
        )
    if is_key(names[0]):
        goals = [find_key(source, name) for name in names]
        keys = made_from(source, goals, inside=options.runtime)
        return _Wanted({key: key[:12] for key in keys}, frozenset(goals))
    project, plan = open_plan(settings, names[0], names[1:])
    report_edits(project, plan.graph, plan.goals)
    named = {plan.keys[step.id]: f"{step.kind} {step.name}" for step in plan.steps}
    if options.runtime:
        inside = _inside(plan)
        named = {key: name for key, name in named.items() if key in inside}
    return _Wanted(named, frozenset(plan.goal_keys))


def _inside(plan: Plan) -> set[str]:
    """Keys of the goals, and of what they contain."""
    found = set(plan.goal_keys)
    for goal in map(plan.graph.__getitem__, plan.goals):
        found |= {plan.keys[stratum] for stratum, _ in goal.contents}
        if goal.kind != "chunk":
            found |= {*plan.depends(goal)}
    return found


def _facts(done: Transfer, wanted: _Wanted, source: Store, to: Store) -> dict[str, object]:
    return {
        "from": source.shown,
        "to": to.shown,
        "verified": to.is_signed,
        "copied": done.copied,
        "bytes": done.sent.bytes,
        "there": {"steps": done.there.steps, "bytes": done.there.bytes},
        "missing": [{"key": key, "name": wanted.names[key]} for key in done.missing],
        "refused": [
            {"key": key, "name": wanted.names[key], "reason": why}
            for key, why in done.refused.items()
        ],
    }


def _print(done: Transfer, wanted: _Wanted, source: Store, to: Store) -> None:
    for key, why in done.refused.items():
        progress(f"warning: refused: {wanted.names[key]} ({key[:12]}): {why}")
    if done.missing:
        names = first_of([wanted.names[key] for key in done.missing], FEW)
        progress(f"warning: {source.shown} does not have {names}")
    if not to.is_signed:
        progress("warning: digests are checked, but signatures are not: no keys are trusted")
    there = f"{_count(done.there.steps)}, {size(done.there.bytes)} were there already"
    print(f"{_count(done.sent.steps)}, {size(done.sent.bytes)} copied to {to.shown}; {there}")


def _count(steps: int) -> str:
    return f"{steps:,} step{'s' * (steps != 1)}"
