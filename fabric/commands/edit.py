"""``edit``: work on the source of a chunk; builds use the files of its work tree."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from fabric.client.edits import Edit, Edits
from fabric.client.installs import Installation, Machine
from fabric.client.project import Project
from fabric.commands import build
from fabric.commands.shared.arguments import add_json, add_system
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import find_step, open_built, open_project
from fabric.config import Settings
from fabric.definitions.graph import Graph, Step
from fabric.errors import FabricError, command
from fabric.host.files import real
from fabric.host.terminal import settled
from fabric.plan import Plan
from fabric.trove.sources import work_trees


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_system(parser)
    parser.add_argument("chunk", nargs="?", metavar="CHUNK", help="name of a chunk")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder for the work tree (default: the chunk's name); a git work tree is used as it"
        " is",
    )
    parser.add_argument("--close", action="store_true", help="end the edit, and remove its folder")
    parser.add_argument("--keep", action="store_true", help="with --close: leave the folder")
    parser.add_argument(
        "--save",
        action="store_true",
        help="write the work as patches of the chunk's lorry: one for each commit, and one for"
        " what is not committed",
    )
    parser.add_argument(
        "--deploy",
        metavar="USER@HOST",
        help="build the chunk, and install its files over ssh: in that machine, or with"
        " USER@HOST:/FOLDER in the system below a folder",
    )
    parser.add_argument(
        "--undo", action="store_true", help="with --deploy: put back what it replaced"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    project = open_project(settings, options.system)
    edits = Edits(settings, project.root)
    _require_meaning(options)
    if options.chunk is None:
        _list(options, edits)
    elif options.save:
        _save(options, project, edits)
    elif options.deploy:
        _deploy(options, settings, edits)
    elif options.close:
        _close(options, edits)
    else:
        _open(options, settings, edits)
    return 0


def _require_meaning(options: argparse.Namespace) -> None:
    """FabricError for an option without the one that it belongs to."""
    for option, of in (("keep", "close"), ("undo", "deploy")):
        if getattr(options, option) and not getattr(options, of):
            raise FabricError(f"--{option} belongs to --{of}")


def _deploy(options: argparse.Namespace, settings: Settings, edits: Edits) -> None:
    machine = Machine.parse(options.deploy)
    if options.undo:
        id = work_trees.edit_id(options.chunk, edits.root)
        _report(options, machine, machine.undo(id))
        return
    edit = _edit_of(options, edits)
    with Installation(machine, edit.id) as installation:
        project, plan = _built(options, settings, edits, edit)
        step = plan.graph[plan.goals[0]]
        key = plan.keys[step.id]
        with project.store.reserve([key]):
            manifest = project.store.manifest(key)
            assert manifest is not None, "it was just built"
            taken = _taken(plan.graph, step)
            blobs = [one.blob for one in manifest.artifacts if one.name in taken and one.blob]
            archives = [partial(project.store.open, blob) for blob in blobs]
            _report(options, machine, installation.install(archives))


def _built(
    options: argparse.Namespace, settings: Settings, edits: Edits, edit: Edit
) -> tuple[Project, Plan]:
    """Build an edited chunk; returns the project, and the plan with the chunk as its goal."""
    _, graph, step = find_step(settings, edit.chunk, options.system)
    system = os.path.relpath(edits.root / graph.path)
    parser = argparse.ArgumentParser()
    build.arguments(parser)
    given = parser.parse_args([system, step.name])
    if not settings.controller:
        return build.build_here(given, settings)
    build.run(given, settings)
    return open_built(settings, system, [step.name])


def _taken(graph: Graph, step: Step) -> set[str]:
    """The artifacts of a chunk that the system takes; all, if it takes none."""
    return {
        artifact
        for stratum, part in graph.root.contents
        for id, artifact in graph[stratum].lists[part]
        if id == step.id
    } or set(step.artifacts)


def _save(options: argparse.Namespace, project: Project, edits: Edits) -> None:
    from fabric.client.saved_edits import save

    edit = _edit_of(options, edits)
    paths = save(project, edits, edit)
    settled()  # the import
    if options.json:
        print_json({"patches": paths})
        return
    for path in paths:
        print(path)
    if paths:
        print(f"{edit.chunk}: its lorry names them; `git add` them with the lorry")
    else:
        print(f"{edit.chunk}: nothing has changed since the source of the definitions")


def _report(options: argparse.Namespace, machine: Machine, lines: list[str]) -> None:
    if options.json:
        done = [line.split(" ", 1) for line in lines]
        print_json({"host": machine.host, "files": [{"what": a, "path": b} for a, b in done]})
        return
    for line in lines:
        print(line)
    files = "1 file" if len(lines) == 1 else f"{len(lines)} files"
    print(f"{options.chunk}: {files} on {machine.host}")
    if not options.undo:
        print(f"  undo  {command('edit', options.chunk, '--deploy', options.deploy, '--undo')}")


def _edit_of(options: argparse.Namespace, edits: Edits) -> Edit:
    """The edit of the named chunk.  FabricError if there is none."""
    edit = edits.by_name.get(options.chunk)
    if edit is None:
        known = ", ".join(edits.by_name) or "none"
        raise FabricError(f"{options.chunk} is not edited; chunks that are: {known}")
    return edit


def _list(options: argparse.Namespace, edits: Edits) -> None:
    if options.close:
        raise FabricError(
            f"name the chunk whose edit is to end: {command('edit', '--close')} CHUNK"
        )
    listed = edits.by_name.values()
    if options.json:
        print_json({"edits": [{"chunk": one.chunk, "folder": one.folder} for one in listed]})
        return
    for edit in listed:
        print(f"{edit.chunk}: {edit.shown}")
    if not listed:
        print(f"no chunk is edited; begin with: {command('edit')} CHUNK")


def _close(options: argparse.Namespace, edits: Edits) -> None:
    edit = _edit_of(options, edits)
    removes = edit.made and not options.keep and Path(edit.folder).is_dir()
    if removes:
        tree = edits.snapshots([edit.chunk])[edit.chunk].tree
        saved = tree == edit.source.tree
        if work := work_trees.unsaved(Path(edit.folder), edit.source.commit, saved=saved):
            raise FabricError(
                f"{edit.folder} has {work}.\n"
                f"save   {command('edit', '--save', edit.chunk)}\n"
                f"leave  {command('edit', '--close', '--keep', edit.chunk)}"
            )
    edits.remove(edit, folder=removes)
    left = "" if removes else f"; {edit.shown} stays"
    print(f"{edit.chunk} is no longer edited: builds use the definitions' source again{left}")


def _open(options: argparse.Namespace, settings: Settings, edits: Edits) -> None:
    project, graph, step = find_step(settings, options.chunk, options.system)
    if step.kind != "chunk":
        raise FabricError(f"{step.name} is a {step.kind}: only sources of chunks can be edited")
    if step.name in edits.by_name:
        there = edits.by_name[step.name].shown
        raise FabricError(
            f"{step.name} is edited already, in {there}; `{command('edit', '--close', step.name)}`"
            " ends that"
        )
    folder = real(options.to or Path(step.name))
    made = _is_new(folder, project)
    source = project.sources.resolve(
        step.repo, step.ref, step.recipe.submodules if step.recipe else ()
    )
    settled()  # its import
    if made:
        work_trees.create(project.sources.repository(source.repo), source.commit, folder)
    id = work_trees.edit_id(step.name, project.root)
    parent = source.commit if work_trees.has(folder, source.commit) else ""
    edit = Edit(step.name, id, str(folder), made, source, parent)
    edits.add(edit)
    print(f"{step.name} is edited in {edit.shown}: builds use the files there, committed or not")
    print(f"  build  {command('build', graph.path, step.name)}")
    print(f"  end    {command('edit', '--close', step.name)}")


def _is_new(folder: Path, project: Project) -> bool:
    """Whether the work tree has to be made; False if the folder is one.  FabricError otherwise."""
    if folder == real(project.root) or real(project.root).is_relative_to(folder):
        raise FabricError(f"{folder} has the definitions: give another folder with --to")
    if (folder / ".git").exists():
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FabricError(
            f"{folder} is in use, and is no git work tree: give another folder with --to"
        )
    return True
