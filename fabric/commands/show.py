"""``show``: prints cache keys, which steps are cached, and why the others are not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fabric.client.failures import Failure, Failures
from fabric.client.render import duration, size, table
from fabric.commands.shared.arguments import add_json, add_locked
from fabric.commands.shared.explained import explain, lines
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_plan
from fabric.config import Settings
from fabric.definitions.graph import Step
from fabric.digest import Digest
from fabric.plan import Plan
from fabric.trove.artifacts.store import Store

TO_BUILD = "to build"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_locked(parser)
    parser.add_argument("system", metavar="SYSTEM", help="system morph")
    parser.add_argument(
        "chunks", nargs="*", default=[], metavar="CHUNK", help="show only these, in detail"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    project, plan = open_plan(settings, options.system, options.chunks, locked=options.locked)
    cached = project.store.has([plan.keys[step.id] for step in plan.steps])
    missing = [step for step in plan.steps if plan.keys[step.id] not in cached]
    explained = explain(project, plan, missing)
    known = Failures(settings.state_dir / "failures")
    failures = {
        step.id: failure
        for step in missing
        if (failure := known.of(Digest(plan.keys[step.id]))) is not None
    }
    reasons = dict.fromkeys((step.id for step in plan.steps), "cached")
    reasons |= dict.fromkeys((step.id for step in missing), TO_BUILD)
    reasons |= {id: one.text((), 1) for id, one in explained.items()}
    reasons |= {id: f"failed {_when(one)}: {one.message}" for id, one in failures.items()}
    if options.json:
        print_json(
            [
                {
                    **_facts(plan, step, reasons[step.id], failures.get(step.id), project.store),
                    "changes": msgspec.to_builtins(
                        explained[step.id].changes if step.id in explained else ()
                    ),
                }
                for step in plan.steps
            ]
        )
    elif options.chunks:
        for goal in plan.goals:
            step = plan.graph[goal]
            state = TO_BUILD if goal in explained and goal not in failures else reasons[goal]
            details = _details(plan, step, state, failures.get(goal), project.store)
            print("\n".join(table(details)))
        if explained:
            print(
                "\n".join(["", f"{TO_BUILD}:", *(f"  {one}" for one in lines(explained.values()))])
            )
    else:
        rows = [(plan.keys[s.id][:12], s.kind, s.name, reasons[s.id]) for s in plan.steps]
        print("\n".join(table(rows)))
    return 0


def _when(failure: Failure) -> str:
    return f"{failure.at.astimezone():%Y-%m-%d %H:%M}"


def _facts(
    plan: Plan, step: Step, reason: str, failure: Failure | None, store: Store
) -> Mapping[str, object]:
    key = plan.keys[step.id]
    manifest = store.manifest(key) if reason == "cached" else None
    return {
        "id": step.id,
        "kind": step.kind,
        "name": step.name,
        "key": key,
        "cached": reason == "cached",
        "why": reason,
        "failed": msgspec.to_builtins(failure),
        "log": plan.log_names[key],
        "depends": plan.depends(step),
        "seconds": manifest.seconds if manifest else None,
        "artifacts": [
            {
                "name": artifact.name,
                "sha256": artifact.blob.sha256 if artifact.blob else None,
                "size": artifact.blob.size if artifact.blob else 0,
            }
            for artifact in (manifest.artifacts if manifest else ())
        ],
    }


def _details(
    plan: Plan, step: Step, reason: str, failure: Failure | None, store: Store
) -> list[tuple[str, str]]:
    rows = [("name", step.name), ("kind", step.kind), ("key", plan.keys[step.id])]
    if source := plan.sources.get(step.id):
        rows += [
            ("source", f"{source.repo} {source.ref}"),
            ("commit", source.commit),
            ("tree", source.tree),
            ("mode", f"{step.mode}, prefix {step.prefix}"),
            ("staged", f"{len(step.staged)} chunks"),
        ]
    rows.append(("state", reason))
    if failure and failure.log:
        gone = "" if Path(failure.log).exists() else " (gone)"
        rows.append(("log", failure.log + gone))
    manifest = store.manifest(plan.keys[step.id]) if reason == "cached" else None
    if manifest:
        rows.append(("built", f"in {duration(manifest.seconds)} by {manifest.builder}"))
        for artifact in manifest.artifacts:
            if artifact.blob:
                what = f"{size(artifact.blob.size)}, sha256 {artifact.blob.sha256}"
            else:
                what = f"{len(artifact.contents)} artifacts" if artifact.contents else "empty"
            rows.append(("artifact", f"{artifact.name}: {what}"))
    return rows
