"""``diff``: compares two systems, or two builds of a chunk: chunks, files and sizes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator

import msgspec

from fabric.building.compare import FileChange, Tree, compare
from fabric.client.changes import Change, Comparison, version
from fabric.client.render import size
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.explained import Explanation
from fabric.commands.shared.files import file_line, tree_of
from fabric.commands.shared.output import print_json
from fabric.commands.shared.sides import Side, open_side
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import DamagedError, FabricError, command
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_store


class Chunk(msgspec.Struct, frozen=True):
    """A chunk of one side."""

    key: str
    version: str  # its ref


class ChunkChange(msgspec.Struct, frozen=True):
    """A chunk that is in one side only, or differs."""

    name: str
    old: Chunk | None
    new: Chunk | None
    changes: tuple[Change, ...] = ()  # why it differs


class Size(msgspec.Struct, frozen=True):
    """The size of one side."""

    files: int
    bytes: int  # of the files' contents
    archives: int  # bytes in the store


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    what = "a system morph, SYSTEM@COMMIT, SYSTEM@built (its last build), or a cache key"
    parser.add_argument("old", metavar="OLD", help=f"{what}; the first digits of a key suffice")
    parser.add_argument("new", metavar="NEW", help="likewise")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    store = open_store(settings)
    with contextlib.ExitStack() as stack:
        old = open_side(settings, options.old, stack)
        new = open_side(settings, options.new, stack)
        if old.kind != new.kind:
            kinds = f"{old.given} is a {old.kind}, and {new.given} a {new.kind}"
            raise FabricError(f"{kinds}: compare two of one kind")
        stack.enter_context(store.reserve([old.key, new.key]))
        comparison = Comparison(old.records, new.records, new.place)
        itself: tuple[Change, ...] = ()
        if old.key != new.key and old.kind != "chunk":
            found = comparison.changes(new.name, old.key, new.key)
            itself = tuple(change for change in found if change.key == new.key)
        chunks = list(_chunks(old, new, comparison))
        unbuilt = [side.given for side in (old, new) if side.manifest is None]
        trees = None if unbuilt or old.kind == "stratum" else _trees(store, old, new)
    files = list(compare(*trees)) if trees else []
    sizes = [_size(*one) for one in zip(trees, (old, new), strict=True)] if trees else []
    if options.json:
        sides = [
            {"given": s.given, "kind": s.kind, "name": s.name, "key": s.key} for s in (old, new)
        ]
        facts = {
            "old": {**sides[0], "size": sizes[0] if sizes else None},
            "new": {**sides[1], "size": sizes[1] if sizes else None},
            "changes": itself,
            "chunks": chunks,
            "files": files if trees else None,
            "not_built": unbuilt,
        }
        print_json(msgspec.to_builtins(facts))
        return 0
    for line in _lines(old, new, itself, chunks):
        print(line)
    if unbuilt:
        print(f"files: not compared, because the store has no build of {' and of '.join(unbuilt)}")
        for given in unbuilt:
            if "@" not in given:
                print(f"  run: {command('build', given)}")
    elif trees:
        for line in _file_lines(files, sizes):
            print(line)
    return 0


def _chunks(old: Side, new: Side, comparison: Comparison) -> Iterator[ChunkChange]:
    """The chunks that differ, by name."""
    for name in sorted(old.chunks.keys() | new.chunks.keys()):
        before, after = old.chunks.get(name, []), new.chunks.get(name, [])
        gone = [key for key in before if key not in after]
        come = [key for key in after if key not in before]
        for one, other in zip(gone, come, strict=False):
            changes = comparison.changes(name, one, other)
            yield ChunkChange(name, _chunk(old, one), _chunk(new, other), changes)
        for one in gone[len(come) :]:
            yield ChunkChange(name, _chunk(old, one), None)
        for other in come[len(gone) :]:
            yield ChunkChange(name, None, _chunk(new, other))


def _chunk(side: Side, key: str) -> Chunk:
    record = side.records[key]
    return Chunk(key, version(record.ref) if record else "")


def _trees(store: Store, old: Side, new: Side) -> tuple[Tree, Tree]:
    before = _tree(store, old)
    same = _blobs(old) == _blobs(new)
    return before, before if same else _tree(store, new)


def _tree(store: Store, side: Side) -> Tree:
    assert side.manifest is not None
    try:
        return tree_of(store, side.manifest)
    except DamagedError as error:
        raise DamagedError(f"{side.given}: {error}", (side.key,)) from None


def _blobs(side: Side) -> list[tuple[str, str]]:
    artifacts = side.manifest.artifacts if side.manifest else ()
    return [(one.name, one.blob.sha256) for one in artifacts if one.blob is not None]


def _size(tree: Tree, side: Side) -> Size:
    artifacts = side.manifest.artifacts if side.manifest else ()
    archives = sum(one.blob.size for one in artifacts if one.blob is not None)
    return Size(len(tree.files), tree.bytes, archives)


def _lines(
    old: Side, new: Side, itself: tuple[Change, ...], chunks: list[ChunkChange]
) -> Iterator[str]:
    if old.key == new.key:
        yield f"{new.kind} {new.name}: the same, {new.key[:12]}"
        return
    yield f"{new.kind} {new.name}: {old.key[:12]} -> {new.key[:12]}"
    if itself:
        yield f"  ~ {Explanation(new.name, new.key, itself).text(())}"
    yield f"chunks: {_counts([_kind(one.old, one.new) for one in chunks])}"
    listed = {one.new.key for one in chunks if one.new is not None}
    for one in chunks:
        versions = dict.fromkeys(each.version for each in (one.old, one.new) if each is not None)
        line = f"{one.name} {' -> '.join(versions)}".rstrip()
        if one.old is None or one.new is None:
            yield f"  {'-' if one.new is None else '+'} {line}"
        else:
            yield f"  ~ {line}: {Explanation(one.name, one.new.key, one.changes).text(listed)}"


def _file_lines(files: list[FileChange], sizes: list[Size]) -> Iterator[str]:
    yield f"files: {_counts([_kind(one.old, one.new) for one in files])}"
    for one in files:
        yield f"  {file_line(one)}"
    old, new = sizes
    yield (
        f"size: {_grown(old.bytes, new.bytes)} in {old.files:,} -> {new.files:,} files,"
        f" {_grown(old.archives, new.archives)} in the store"
    )


def _kind(old: object, new: object) -> str:
    return "added" if old is None else "gone" if new is None else "changed"


def _counts(kinds: Iterable[str]) -> str:
    found = list(kinds)
    counts = [
        f"{found.count(kind)} {kind}" for kind in ("added", "gone", "changed") if kind in found
    ]
    return ", ".join(counts) or "no difference"


def _grown(old: int, new: int) -> str:
    sign = "+" if new > old else "-"
    more = f" ({sign}{size(abs(new - old))})" if new != old else ""
    return f"{size(old)} -> {size(new)}{more}"
