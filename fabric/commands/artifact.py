"""``artifact``: lists what the store has, shows one built step, deletes some, shares some."""

from __future__ import annotations

import argparse
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from fabric.building.compare import File, Tree
from fabric.client.catalogue import Built, Catalogue, bytes_of
from fabric.client.render import ago, duration, size, table
from fabric.commands.shared.arguments import add_json, add_system
from fabric.commands.shared.files import tree_of
from fabric.commands.shared.keys import find_key, find_manifest, is_key, mending, pinned
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import find_chunk
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import FabricError, StoreError, command
from fabric.host.terminal import one_line, progress
from fabric.jobs import Manifest
from fabric.trove.artifacts.countersigned import countersigned
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_sources, open_store

#: Digits of a key that are shown.
SHOWN = 12
#: Steps that a line names.
FEW = 5

_TYPES = {
    "file": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
    "directory": stat.S_IFDIR,
    "FIFO": stat.S_IFIFO,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_system(parser)
    parser.add_argument(
        "action",
        choices=["list", "show", "delete", "push", "pull"],
        help="show: facts and files of one; delete: remove some from the store; push, pull: copy"
        " some to another store, or from one",
    )
    parser.add_argument(
        "names",
        nargs="*",
        default=[],
        metavar="SYSTEM|CHUNK|KEY",
        help="name of a chunk, stratum or system, or at least 8 digits of a key; list: patterns of"
        " names (default: all); push, pull: a system and, if not all of it, some of its chunks or"
        " strata, or keys",
    )
    parser.add_argument("--no-files", action="store_true", help="show: leave out the files")
    parser.add_argument("--to", metavar="URL", help="push: the store to copy to")
    parser.add_argument("--from", dest="source", metavar="URL", help="pull: the store to copy from")
    parser.add_argument(
        "--password",
        type=Path,
        metavar="FILE",
        help="push, pull: a file with USER:PASSWORD for that store",
    )
    parser.add_argument(
        "--runtime",
        action="store_true",
        help="push, pull: only these and what they contain, without what only a build needs",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="delete: print what would be done, and do nothing"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    if options.action in ("push", "pull"):
        from fabric.commands.shared.shared_steps import copy

        return copy(options, settings)
    store = open_store(settings)
    if options.action == "list":
        return _list(options, store)
    if not options.names or (options.action == "show" and len(options.names) > 1):
        raise FabricError(
            f"artifact {options.action}: name {'one' if options.action == 'show' else 'some'};"
            f" `{command('artifact', 'list')}` lists all"
        )
    keys = list(
        dict.fromkeys(_find(name, options.system, settings, store) for name in options.names)
    )
    if options.action == "show":
        return _show(keys[0], options, store)
    return _delete(keys, options, settings, store)


def _find(given: str, system: str | None, settings: Settings, store: Store) -> str:
    """The key of the built step that a user means: one key, else what the definitions describe.

    Without definitions, the only step of that name in the store.
    """
    if is_key(given):
        return find_key(store, given)
    known = True
    try:
        project, plan, step = find_chunk(settings, given, system)
        key = plan.keys[step.id]
        if project.store.has([key]):
            return key
        build = command("build", plan.graph.path, *([] if step is plan.graph.root else [step.name]))
        why = f"{given}: not built yet with these inputs; run: {build}"
        given = step.name
    except FabricError as error:
        known, why = False, str(error)
    others = [one for one in Catalogue(store).select([given]) if one.name == given]
    if len(others) == 1 and not known:
        return others[0].key
    if not others:
        raise FabricError(why)
    listed = ", ".join(f"{one.key[:SHOWN]} (used {_when(one.used)})" for one in others[:FEW])
    more = f" and {len(others) - FEW} more" * (len(others) > FEW)
    raise FabricError(
        f"{why}\nthe store has other builds of it, to be named by key: {listed}{more}"
    )


# -- list ----------------------------------------------------------------------------------


def _list(options: argparse.Namespace, store: Store) -> int:
    catalogue = Catalogue(store)
    found = catalogue.select(options.names)
    total = bytes_of(found)
    if options.json:
        print_json(
            {
                "store": store.shown,
                "bytes": total,
                "damaged": sorted(catalogue.unread),
                "artifacts": [_facts(one, catalogue) for one in found],
            }
        )
        return 0
    rows = [
        (
            one.name,
            one.kind,
            one.key[:SHOWN],
            size(one.size),
            _when(one.built),
            _when(one.used),
            f"rebuild of {one.rebuild_of[:SHOWN]}"
            if one.rebuild_of
            else _few(catalogue.systems(one.key)) or "-",
        )
        for one in found
    ]
    heads = [("NAME", "KIND", "KEY", "SIZE", "BUILT", "USED", "IN")]
    print("\n".join(table([*heads, *rows] if rows else [])), end="\n" * bool(rows))
    print(f"{_count(len(found), 'artifact')}, {size(total)} in {store.shown}")
    if catalogue.unread:
        progress(
            f"{len(catalogue.unread)} more cannot be read: `{command('cache', 'check')}` looks"
        )
    return 0


def _facts(one: Built, catalogue: Catalogue) -> dict[str, object]:
    return {
        "name": one.name,
        "kind": one.kind,
        "arch": one.arch,
        "key": one.key,
        "size": one.size,
        "built": one.built or None,
        "used": one.used,
        "origin": one.origin or None,
        "rebuild_of": one.rebuild_of or None,
        "systems": catalogue.systems(one.key),
    }


# -- show ----------------------------------------------------------------------------------


def _show(key: str, options: argparse.Namespace, store: Store) -> int:
    manifest = find_manifest(store, key)
    catalogue = Catalogue(store)
    tree = None
    if manifest.kind != "stratum" and not options.no_files:
        with (
            store.reserve([key]),
            mending(store, [key], "it is removed, and built again when needed"),
        ):
            tree = tree_of(store, manifest)
    one = catalogue.steps[key]
    signers = [by.name for by in store.signers(manifest)]
    if options.json:
        print_json({**_all_facts(manifest, one, catalogue, tree), "signed_by": signers})
        return 0
    rows = [*_rows(manifest, one, catalogue), *(("signed by", name) for name in signers)]
    if by := countersigned(store, manifest):
        attempt = f"attempt {by.what.fence} of {by.what.worker}" if by.what.worker else "its origin"
        rows += [
            ("countersigned by", f"{one_line(key.name)}: {one_line(attempt)}") for key in by.by
        ]
    print("\n".join(table(rows)))
    inputs = sorted(manifest.inputs.items())
    _print_section("inputs", table(inputs))
    _print_section("built with", _names(manifest.staged, catalogue))
    parts = dict.fromkeys(each.key for artifact in manifest.artifacts for each in artifact.contents)
    _print_section("made of", _names(parts, catalogue))
    if tree is not None:
        lines = table(_file_row(path, file) for path, file in tree.listing())
        _print_section(f"{_count(len(tree.files), 'file')}, {size(tree.bytes)}", lines)
    return 0


def _rows(manifest: Manifest, one: Built, catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    about = manifest.metadata
    yield "name", manifest.name
    yield "kind", f"{manifest.kind} for {manifest.arch}"
    yield "key", manifest.key
    if manifest.origin:
        yield "origin", f"{manifest.origin}, which was made from the same contents"
    if manifest.rebuild_of:
        yield "rebuild", f"of {manifest.rebuild_of}"
    if "repo" in about:
        yield "source", f"{about['repo']} {about.get('ref', '')}"
        yield "commit", about.get("sha1", "")
    if "morph" in about:
        yield "morph", about["morph"]
    yield "built", f"{_when(one.built)}, in {duration(manifest.seconds)} by {manifest.builder}"
    yield "used", _when(one.used)
    for artifact in manifest.artifacts:
        if artifact.blob:
            what = f"{size(artifact.blob.size)}, sha256 {artifact.blob.sha256}"
        else:
            what = _count(len(artifact.contents), "artifact") if artifact.contents else "empty"
        yield "artifact", f"{artifact.name}: {what}"
    if manifest.log is not None:
        yield "log", f"{size(manifest.log.size)}; {command('logs', manifest.key[:SHOWN])}"
    for remark in manifest.remarks:
        yield "note", remark
    if systems := catalogue.systems(manifest.key):
        yield "in", ", ".join(systems)
    if users := list(catalogue.users(manifest.key)):
        yield "needed by", _few(_named(users))
    if equals := list(catalogue.equals(manifest.key)):
        yield "same as", _few(_named(equals))


def _names(keys: Iterable[str], catalogue: Catalogue) -> list[str]:
    """A line for each step, with its name if it is in the store."""
    known = catalogue.steps
    return table((key[:SHOWN], known[key].name if key in known else "(gone)") for key in keys)


def _print_section(title: str, lines: list[str]) -> None:
    if lines:
        print("\n".join(["", f"{title}:", *(f"  {line}" for line in lines)]))


def _file_row(path: str, file: File) -> tuple[str, str, str, str]:
    mode = stat.filemode(_TYPES[file.type] | int(file.mode, 8))
    shown = size(file.size) if file.type == "file" else ""
    arrow = {"symlink": " -> "}.get(file.type, " ")
    return mode, shown, path + (arrow + file.target if file.target else ""), file.artifact


def _all_facts(
    manifest: Manifest, one: Built, catalogue: Catalogue, tree: Tree | None
) -> dict[str, object]:
    files = tree.listing() if tree is not None else ()
    artifacts = [
        {
            "name": artifact.name,
            "sha256": artifact.blob.sha256 if artifact.blob else None,
            "size": artifact.blob.size if artifact.blob else 0,
            "contents": msgspec.to_builtins(artifact.contents),
        }
        for artifact in manifest.artifacts
    ]
    log = manifest.log
    return {
        **_facts(one, catalogue),
        "seconds": manifest.seconds,
        "builder": manifest.builder,
        "metadata": manifest.metadata,
        "inputs": manifest.inputs,
        "built_with": list(manifest.staged),
        "input_digests": list(manifest.input_digests),
        "needed_by": [user.key for user in catalogue.users(one.key)],
        "equal": [equal.key for equal in catalogue.equals(one.key)],
        "artifacts": artifacts,
        "log": {"name": manifest.log_name, "sha256": log.sha256, "size": log.size} if log else None,
        "remarks": list(manifest.remarks),
        "files": None
        if tree is None
        else [{"path": path, **msgspec.to_builtins(file)} for path, file in files],
    }


# -- delete --------------------------------------------------------------------------------


def _delete(keys: list[str], options: argparse.Namespace, settings: Settings, store: Store) -> int:
    catalogue = Catalogue(store)
    missing = [key for key in keys if key not in catalogue.steps and key not in catalogue.unread]
    if missing:
        raise StoreError(f"{missing[0]}: the store {store.url} does not have it")
    names = {key: catalogue.steps[key].name if key in catalogue.steps else "?" for key in keys}
    reserved = store.reserved() | pinned(settings)
    if busy := [f"{names[key]} ({key[:SHOWN]})" for key in keys if key in reserved]:
        raise FabricError(
            f"{', '.join(busy)}: a build that runs needs {'them' if len(busy) > 1 else 'it'};"
            " nothing is deleted; try again when it has ended"
        )
    gone = store.delete(keys, dry_run=options.dry_run)
    left = set() if options.dry_run else store.has(keys)
    deleted = [key for key in keys if key not in left]
    layers = _delete_layers(deleted, settings, store, dry_run=options.dry_run)
    freed = gone.bytes + layers
    users = {key: _kept(catalogue.users(key), deleted) for key in deleted}
    sharing = {key: _kept(catalogue.sharing(key), deleted) for key in deleted}
    if options.json:
        print_json(
            {
                "dry_run": options.dry_run,
                "deleted": deleted,
                "in_use": sorted(left),
                "needed_by": {key: [user.key for user in found] for key, found in users.items()},
                "shared_with": {key: [one.key for one in found] for key, found in sharing.items()},
                "bytes": freed,
                "waiting": gone.waiting_bytes,
            }
        )
        return 1 if left else 0
    would = "would be " if options.dry_run else ""
    for key in deleted:
        print(f"{names[key]} {key[:SHOWN]}: {would}deleted")
        if users[key]:
            print(f"  made from it, and kept: {_few(_named(users[key]))}")
        if sharing[key]:
            print(f"  files stay that others share with it: {_few(_named(sharing[key]))}")
    print(f"{size(freed)} {would}freed")
    if gone.waiting:
        print(f"{size(gone.waiting_bytes)} stay until `{command('gc')}`, because they are so new")
    if left:
        listed = ", ".join(f"{names[key]} ({key[:SHOWN]})" for key in sorted(left))
        raise FabricError(f"{listed}: not deleted, because a build has just begun to use it")
    return 0


def _kept(steps: Iterable[Built], deleted: Collection[str]) -> list[Built]:
    return [one for one in steps if one.key not in deleted]


def _delete_layers(keys: list[str], settings: Settings, store: Store, *, dry_run: bool) -> int:
    """Remove the unpacked files of these steps on this machine; returns how many bytes."""
    if not any((settings.work_dir / "layers" / key).is_dir() for key in keys):
        return 0
    from fabric.building.unused import remove_layers
    from fabric.building.workspace import Workspace

    with Workspace(settings.work_dir, store, open_sources(settings), sweep=False) as workspace:
        return remove_layers(workspace, keys, dry_run=dry_run).bytes


# -- words ---------------------------------------------------------------------------------


def _when(at: float) -> str:
    return ago(max(0.0, time.time() - at)) if at else "-"


def _named(steps: Iterable[Built]) -> list[str]:
    return sorted({f"{one.kind} {one.name}" for one in steps})


def _few(words: list[str]) -> str:
    more = f" and {len(words) - FEW} more" if len(words) > FEW else ""
    return ", ".join(words[:FEW]) + more


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
