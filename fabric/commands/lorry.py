"""``lorry``: lists lorries, imports their sources, updates their pins, adds one."""

from __future__ import annotations

import argparse

from fabric.client.project import Project
from fabric.client.render import table
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.new_lorry import add_lorry
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_project
from fabric.config import Settings
from fabric.errors import Cancelled, FabricError, SourceError
from fabric.trove.sources.lorry_fields import TYPES
from fabric.trove.sources.resolve import Sources


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "action",
        choices=["list", "import", "update", "add"],
        help="update: update pins; add: write a new lorry, pinned to what is offered",
    )
    parser.add_argument(
        "names",
        nargs="*",
        default=[],
        metavar="NAME",
        help="name of a lorry (default: all); add: a name, and fields as FIELD=VALUE, such as"
        " url=https://host/a.tar.gz, with commas in a list",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="update: print what would change, and change nothing"
    )
    parser.add_argument("--type", choices=list(TYPES), help="add: type of the lorry")
    parser.add_argument(
        "--file", metavar="FILE", help="add: lorry file for it, such as tools (default: its name)"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.dry_run and options.action != "update":
        raise FabricError("--dry-run is for `lorry update`")
    project = open_project(settings)
    if options.action == "add":
        return _add(options, project)
    if options.type or options.file:
        raise FabricError("--type and --file are for `lorry add`")
    sources = project.sources
    names = options.names or sorted(lorry.name for lorry in sources.lorries)
    if options.action == "list":
        lorries = [sources.lorries.named(name) for name in names]
        if options.json:
            facts = ("name", "type", "repo", "ref", "where")
            print_json([{fact: getattr(one, fact) for fact in facts} for one in lorries])
        else:
            for line in table((one.repo, one.type, one.ref, one.where) for one in lorries):
                print(line)
        return 0
    done: dict[str, list[str]] = {}
    errors: list[FabricError] = []
    for name in sources.lorries.in_order(names):
        try:
            done[name] = _done(options, name, sources)
        except Cancelled:
            raise
        except FabricError as error:  # the other lorries do not depend on this one
            errors.append(error)
            continue
        if not options.json:
            print("\n".join(f"{name}: {line}" for line in done[name]), flush=True)
    if options.json:
        print_json(done)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        listed = "\n".join(str(error) for error in errors)
        raise SourceError(f"{len(errors)} of {len(names)} lorries failed:\n{listed}")
    return 0


def _add(options: argparse.Namespace, project: Project) -> int:
    if not options.names or not options.type:
        raise FabricError("lorry add: give a name and a type: lorry add NAME --type TYPE")
    name, *fields = options.names
    changes, chunk = add_lorry(project, name, options.type, fields, options.file or "")
    if options.json:
        print_json({"name": name, "changes": changes, "chunk": chunk})
        return 0
    print("\n".join(f"{name}: {line}" for line in changes))
    print(f"A stratum builds it with this below `chunks`, and its build-depends:\n{chunk}")
    return 0


def _done(options: argparse.Namespace, name: str, sources: Sources) -> list[str]:
    """Import a lorry, or update its pins; returns the changes, a line each."""
    if options.action == "update":
        return sources.update_lorry(name, dry_run=options.dry_run) or ["nothing newer"]
    source, changes = sources.run_lorry(name)
    sources.publish([source])
    return [*changes, f"{source.ref} is commit {source.commit}"]
