"""Opens one side of a comparison: a system as it is now, was committed or was built, or a key."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from fabric.client.changes import Records, placing
from fabric.client.project import Project
from fabric.commands.shared.keys import find_key
from fabric.commands.shared.plans import open_project, plan_of
from fabric.config import Settings
from fabric.errors import DefinitionsError, FabricError, SourceError, suggest
from fabric.host.files import real
from fabric.host.shared_files import scratch
from fabric.host.terminal import progress
from fabric.jobs import Manifest
from fabric.plan import Plan
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_sources, open_store
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.git import Repository
from fabric.trove.sources.git_process import run

#: The beginning of a cache key.
_KEY = re.compile(r"[0-9a-f]{6,64}")
#: After "@": the last build of the system, and not a commit.
BUILT = "built"


class Side(msgspec.Struct, frozen=True):
    """One of two things that are compared."""

    given: str  # as the user names it
    kind: str
    name: str
    key: str
    manifest: Manifest | None  # None: it is not built
    records: Records
    chunks: dict[str, list[str]]  # name -> keys, of all chunks in it
    place: Callable[[str, str], str]  # as for `fabric.client.changes.Comparison`


def open_side(settings: Settings, given: str, stack: contextlib.ExitStack) -> Side:
    """What a user names: SYSTEM, SYSTEM@COMMIT, SYSTEM@built, or the beginning of a cache key.

    ``stack`` closes what it opens.  FabricError if there is no such thing.
    """
    if not Path(given).exists():
        if _KEY.fullmatch(given):
            store = open_store(settings)
            return _of_key(store, given, find_key(store, given))
        system, _, commit = given.rpartition("@")
        if system:
            return _of_history(settings, given, system, commit, stack)
    project = open_project(settings, given)
    graph = project.graph(project.locate(given, Path.cwd()))
    return _of_plan(project, given, plan_of(project, graph), project.read)


def _of_history(
    settings: Settings, given: str, system: str, commit: str, stack: contextlib.ExitStack
) -> Side:
    project = open_project(settings, system)
    if commit == BUILT:
        graph = project.graph(project.locate(system, Path.cwd()))
        key = project.store.latest("system", graph.system, graph.arch)
        if key is None:
            raise FabricError(f"{given}: the store {project.store.url} has no build of it")
        return _of_key(project.store, given, key)
    found, tree, repository = find_commit(project, given, commit)
    files = stack.enter_context(Committed(repository, tree))
    path = _locate(project, files, system)
    if path is None:
        hint = suggest(system, project.systems())
        raise FabricError(f"{given}: no such system in commit {found[:12]}{hint}")
    try:
        plan = _plan(project, path, files, found, repository)
    except (DefinitionsError, SourceError) as error:
        raised = FabricError(f"commit {found[:12]} of the definitions cannot be compared:\n{error}")
        raised.exit_code = error.exit_code
        raise raised from None
    return _of_plan(project, given, plan, files.read)


def find_commit(project: Project, given: str, commit: str) -> tuple[str, str, Repository]:
    """A commit of the definitions, the tree of their folder in it, and their repository."""
    around = ["-C", str(project.root)]

    def ask(*command: str) -> str:
        said = run([*around, *command], check=False, private=False)
        return os.fsdecode(said or b"").strip("\n")

    git_dir, _, prefix = ask("rev-parse", "--absolute-git-dir", "--show-prefix").partition("\n")
    if not git_dir:
        raise FabricError(f"{given}: {project.root} is in no git repository, so it has no commits")
    found = ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if not found:
        raise FabricError(f"{given}: {project.root} has no commit {commit!r}")
    tree = ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{found}:{prefix}")
    if not tree:
        raise FabricError(f"{given}: commit {found[:12]} has no folder {prefix}")
    return found, tree, Repository(Path(git_dir))


def _locate(project: Project, files: Committed, system: str) -> str | None:
    """The path of a system in a commit: the places are those of `Project.locate`."""
    root = real(project.root)
    for file in (Path.cwd() / system, root / system, root / "systems" / system):
        for candidate in (file, file.with_name(file.name + ".morph")):
            path = os.path.relpath(os.path.normpath(candidate), root)
            if files.read(path) is not None:
                return path
    return None


def _plan(
    project: Project, system: str, files: Committed, commit: str, repository: Repository
) -> Plan:
    """The plan of a system of a commit, with the lorries of that commit."""
    graph = project.graph(system, files.read)
    temporary = project.settings.cache_dir / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with scratch(temporary, "comparing-") as folder:
        files.copy("sources", folder)
        # a lorry of the definitions' own repository finds it here
        (folder / ".git").write_text(f"gitdir: {repository.path}\n")
        lorries = folder / "sources"
        sources = open_sources(project.settings, lorries, head=commit, progress=progress)
        return plan_of(project, graph, sources=sources)


def _of_plan(project: Project, given: str, plan: Plan, read: Callable[[str], bytes | None]) -> Side:
    root = plan.graph.root
    key = plan.keys[root.id]
    names = {plan.keys[step.id]: step.name for step in plan.steps}
    chunks: dict[str, list[str]] = {}
    for one in dict.fromkeys(plan.depends(root)):
        chunks.setdefault(names[one], []).append(one)
    return Side(
        given=given,
        kind="system",
        name=root.name,
        key=key,
        manifest=project.store.manifest(key),
        records=Records(project.store, plan),
        chunks=chunks,
        place=placing(plan, read),
    )


def _of_key(store: Store, given: str, key: str) -> Side:
    manifest = store.manifest(key)
    if manifest is None:
        raise FabricError(f"{given}: the store {store.url} does not have it")
    records = Records(store)
    chunks: dict[str, list[str]] = {}
    if manifest.kind == "chunk":
        chunks[manifest.name] = [key]
    inside = [one for artifact in manifest.artifacts for one in artifact.contents]
    names = {one.key: one.artifact for one in inside}
    records.bring(names)
    for one, artifact in names.items():
        record = records[one]
        chunks.setdefault(record.name if record else artifact, []).append(one)
    return Side(
        given=given,
        kind=manifest.kind,
        name=manifest.name,
        key=key,
        manifest=manifest,
        records=records,
        chunks=chunks,
        place=lambda key, field: "",  # noqa: ARG005
    )
