"""``provenance``: writes signed statements of where artifacts come from."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.commands.shared.arguments import add_locked
from fabric.commands.shared.output import save
from fabric.commands.shared.plans import edits_of, open_plan, open_project, take_snapshot
from fabric.commands.shared.sides import find_commit
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.commands.shared.vouched import difference, not_built, require_trust, vouched
from fabric.config import Settings
from fabric.errors import FabricError, command

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.plan import Plan
    from fabric.trust.provenance import Definitions
    from fabric.trust.seal import Seal


def arguments(parser: argparse.ArgumentParser) -> None:
    add_locked(parser)
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="system morph")
    add("names", nargs="*", default=[], metavar="NAME", help="only these steps, and what they need")
    add("--to", metavar="FILE", type=Path, help="write it to a file (default: print it)")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    seal = require_trust(settings)
    project = open_project(settings, options.system)
    tree = take_snapshot(project)[0].tree
    _, plan = open_plan(
        settings, options.system, options.names, locked=options.locked, project=project
    )
    if edits := edits_of(project, plan.graph, plan.goals):
        names = ", ".join(f"{one.chunk} in {one.shown}" for one in edits)
        raise FabricError(
            f"{names}: a source that is edited here is in no repository that others have: push the"
            f" work, and run: {command('edit', '--close', edits[0].chunk)}"
        )
    lines = statements(project, plan, seal, definitions_of(project, plan, tree))
    document = b"".join(line + b"\n" for line in lines)
    if options.to is None:
        sys.stdout.buffer.write(document)
        return 0
    save(document, options.to, "the provenance")
    print(f"{options.to}: {len(lines)} signed statements about {plan.graph.system}")
    return 0


def statements(project: Project, plan: Plan, seal: Seal, definitions: Definitions) -> list[bytes]:
    """An envelope with a statement for each step that has artifacts of its own."""
    from fabric.trove.artifacts.contents import changed_inputs
    from fabric.trust.provenance import KIND, statement

    found = list(vouched(project, plan))
    if missing := [one.step for one in found if one.manifest is None]:
        raise not_built(plan, missing)
    known = {one.key: one.manifest for one in found if one.manifest is not None}
    lines = []
    for one in found:
        signed_by = [key.id for key in project.store.signers(known[one.key])]
        if not signed_by:  # it has just been removed or replaced
            raise not_built(plan, [one.step])
        job = plan.job(one.step)
        if wrong := difference(job, known[one.key]):
            raise FabricError(
                f"{one.step.name}: its manifest has another {wrong} than the definitions; see:"
                f" {command('verify', plan.graph.path)}"
            )
        if changed := changed_inputs(job, known):
            raise FabricError(
                f"{one.step.name}: it was made from other contents of {known[changed[0]].name} than"
                f" the store has, so the store cannot tell from what; see:"
                f" {command('verify', plan.graph.path)}"
            )
        made = statement(job, known[one.key], known, definitions, signed_by[0])
        if made is not None:
            lines.append(seal.close(KIND, made))
    return lines


def definitions_of(project: Project, plan: Plan, tree: str) -> Definitions:
    """What the plan was made from.

    FabricError if its files are not those of the git tree ``tree`` any more, which they were before
    the plan was made.
    """
    from fabric.trust.provenance import Definitions

    if take_snapshot(project)[0].tree != tree:
        raise FabricError(
            "files of the definitions have changed since this command began: run it again"
        )
    commit = ""
    with contextlib.suppress(FabricError):  # in no repository
        head, committed, _ = find_commit(project, "HEAD", "HEAD")
        commit = head if committed == tree else ""  # else files have changed since
    return Definitions(plan.graph.path, commit, tree)
