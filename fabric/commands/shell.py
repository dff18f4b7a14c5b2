"""``shell``: opens a shell in the sandbox of a chunk, in a built system, or in staged artifacts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from fabric.building.shell import shell
from fabric.building.tree_shell import staged_shell, system_shell
from fabric.building.workspace import Workspace
from fabric.client.project import Project
from fabric.commands.shared.arguments import add_limits, add_system
from fabric.commands.shared.keys import find_manifest, is_key
from fabric.commands.shared.plans import (
    find_chunk,
    find_steps,
    open_built,
    open_plan,
    open_project,
    plan_of,
)
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.definitions.graph import Step
from fabric.errors import FabricError, StoreError, command
from fabric.jobs import Manifest, Staged
from fabric.plan import Plan
from fabric.trove.artifacts.manifests import steps_of
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_sources, open_store


def arguments(parser: argparse.ArgumentParser) -> None:
    add_limits(parser)
    add_system(parser)
    parser.add_argument(
        "chunk",
        nargs="?",
        metavar="CHUNK|SYSTEM|KEY",
        help="name of a chunk; or a built system; or at least 8 digits of the key of one",
    )
    parser.add_argument(
        "argv",
        nargs="*",
        default=[],
        metavar="ARG",
        help="after --: command to run in place of a shell",
    )
    parser.add_argument(
        "--with",
        dest="staged",
        action="append",
        default=[],
        metavar="CHUNK|STRATUM|KEY",
        help="stage this artifact, and others that are named so, in place of a sandbox",
    )
    parser.add_argument("-c", dest="line", metavar="COMMAND", help="run this line of sh and exit")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    words = list(options.argv)
    if options.staged and options.chunk is not None:  # there is nothing else to name
        words.insert(0, options.chunk)
    if options.line is not None:
        words = ["sh", "-c", options.line, *(["sh", *words] if words else [])]
    if options.staged:
        return _staged(options, settings, words)
    if options.chunk is None:
        raise FabricError("shell: name a chunk or a system, or artifacts by --with")
    if is_key(options.chunk):
        return _of_key(options, settings, words)
    if _is_system(settings, options.chunk):
        return _in_system(settings, options.chunk, words)
    project, plan, step = find_chunk(settings, options.chunk, options.system)
    if step.kind == "system":
        return _in_system(settings, str(project.root / plan.graph.path), words)
    if step.kind == "stratum":
        raise FabricError(
            f"{step.name} is a stratum, and only chunks are built in a sandbox;"
            f" `{command('shell', '--with', step.name)}` opens a shell with its files"
        )
    return _in_sandbox(settings, project, plan, step, words)


def _in_sandbox(
    settings: Settings, project: Project, plan: Plan, step: Step, argv: list[str]
) -> int:
    missing = set(plan.depends(step)) - project.store.has(plan.depends(step))
    if missing:
        raise FabricError(
            f"{step.name}: chunks that it needs are not built yet ({len(missing)} of"
            f" {len(plan.depends(step))}); run: {command('build', plan.graph.path, step.name)}"
        )
    with (
        project.store.reserve(plan.depends(step)),
        Workspace(settings.work_dir, project.store, project.sources) as workspace,
    ):
        return shell(plan.job(step), workspace, jobs=settings.jobs, argv=argv)


# -- keys ----------------------------------------------------------------------------------


def _of_key(options: argparse.Namespace, settings: Settings, argv: list[str]) -> int:
    """A shell in the system, or in the sandbox of the chunk, with this key."""
    store = open_store(settings)
    try:
        manifest = find_manifest(store, options.chunk)
    except StoreError as error:  # it may have failed: then it has no artifact, but a sandbox
        found = _planned(options, settings)
        if found is None:
            raise error from None
        return _in_sandbox(settings, *found, argv)
    if manifest.kind == "system":
        return _in_tree(settings, store, manifest, argv)
    if manifest.kind == "chunk":
        try:
            project, plan, step = find_chunk(settings, manifest.name, options.system)
        except FabricError:
            pass
        else:
            if plan.keys[step.id] == manifest.key:
                return _in_sandbox(settings, project, plan, step, argv)
    raise FabricError(
        f"{options.chunk}: {manifest.kind} {manifest.name}: the definitions here do not describe"
        f" a sandbox with this key; `{command('shell', '--with', manifest.key[:12])}` opens a shell"
        " with its files"
    )


def _planned(options: argparse.Namespace, settings: Settings) -> tuple[Project, Plan, Step] | None:
    """The chunk with this key in the system that is named or was built last."""
    project = open_project(settings, options.system)
    system = options.system or project.last_system()
    if system is None:
        return None
    if not options.system:
        system = str(project.root / system)
    project, plan = open_plan(settings, system, [])
    for step in plan.steps:
        if step.kind == "chunk" and plan.keys[step.id].startswith(options.chunk):
            return project, plan, step
    return None


# -- systems -------------------------------------------------------------------------------


def _is_system(settings: Settings, given: str) -> bool:
    """Whether a user names the file of a system; a bare name may be that of a chunk, too."""
    if "/" not in given and not given.endswith(".morph"):
        return False
    project = open_project(settings, given)
    try:
        return project.locate(given, Path.cwd()) in project.systems()
    except FabricError:
        return False


def _in_system(settings: Settings, system: str, argv: list[str]) -> int:
    project, plan = open_built(settings, system, [])
    root = plan.graph.root
    manifest = project.store.manifest(plan.keys[root.id])
    if manifest is None:
        raise FabricError(
            f"{root.name}: not built yet with these inputs; run:"
            f" {command('build', plan.graph.path)}"
        )
    return _in_tree(settings, project.store, manifest, argv)


def _in_tree(settings: Settings, store: Store, manifest: Manifest, argv: list[str]) -> int:
    with (
        store.reserve([manifest.key]),
        Workspace(settings.work_dir, store, open_sources(settings)) as workspace,
    ):
        return system_shell(manifest, workspace, argv)


# -- staged artifacts ----------------------------------------------------------------------


class _Part(NamedTuple):
    """An artifact that a user names."""

    kind: str
    name: str
    keys: tuple[str, ...]  # of its chunks
    remedy: str  # what makes them


def _staged(options: argparse.Namespace, settings: Settings, argv: list[str]) -> int:
    """A shell in artifacts that are staged together."""
    store = open_store(settings)
    names = [one for one in options.staged if not is_key(one)]
    parts = _named(settings, names, options.system) if names else {}
    parts |= {given: _keyed(store, given) for given in options.staged if given not in parts}
    for given, part in parts.items():
        if part.kind == "system":
            raise FabricError(f"{given} is a system; run: {command('shell', given)}")
    keys = dict.fromkeys(key for part in parts.values() for key in part.keys)
    found = {one.key: one for one in store.manifests(keys) if one is not None}
    missing = []
    for given, part in parts.items():
        if lacking := len(set(part.keys) - found.keys()):
            count = f" ({lacking} of its {len(part.keys)} chunks)" * (part.kind == "stratum")
            missing.append(f"{given}: not in the store{count}; {part.remedy}")
    if missing:
        raise FabricError("\n".join(missing))
    # A chunk is above those that it was built with: a directory may be a symlink of theirs.
    chunks = sorted((found[key] for key in keys), key=lambda one: len(one.staged))
    prefixes = {one.inputs.get("prefix", "/usr") for one in chunks} - {"/usr", "", "/"}
    staged = [Staged(one.key, one.name) for one in chunks]
    with (
        store.reserve(keys),
        Workspace(settings.work_dir, store, open_sources(settings)) as workspace,
    ):
        return staged_shell(staged, sorted(prefixes), workspace, argv)


def _named(settings: Settings, names: list[str], system: str | None) -> dict[str, _Part]:
    """The artifacts of these names in the definitions."""
    project, graph, goals = find_steps(settings, names, system)
    plan = plan_of(project, graph, goals)
    found = {}
    for name, goal in zip(names, goals, strict=True):
        step = plan.graph[goal]
        keys = (plan.keys[goal],) if step.kind == "chunk" else plan.depends(step)
        remedy = f"run: {command('build', plan.graph.path, step.name)}"
        found[name] = _Part(step.kind, step.name, keys, remedy)
    return found


def _keyed(store: Store, given: str) -> _Part:
    """The artifact with a key that begins so."""
    manifest = find_manifest(store, given)
    keys = (manifest.key,) if manifest.kind == "chunk" else tuple(steps_of(manifest))
    return _Part(manifest.kind, manifest.name, keys, f"build {manifest.name} again")
