"""Provides layers: chunks unpacked once each, and combined by overlayfs.

Overlayfs has a limit on layers, and past it bubblewrap silently drops the lowest; `plan_layers`
stays well below the limit by merging many layers into one by hard links.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from fabric.building.archive import MTIME
from fabric.building.disk_space import mark_used
from fabric.building.merge import Merger
from fabric.building.ports import Store
from fabric.building.session import Session
from fabric.building.tree import Clash, Opener, Unpacker, follow
from fabric.digest import Digest
from fabric.errors import MachineFault
from fabric.host.cancel import CancelToken
from fabric.host.files import clear, remember
from fabric.host.progress import Moved, Progress, silent, unmoved
from fabric.host.tree_tables import Record, difference, read_record, table_of, write_record
from fabric.jobs import Staged
from fabric.trove.artifacts.contents import output_of

#: Mount options have at most 4096 bytes: 229 layers.  The topmost two or three are not chunks.
MAX_LAYERS = 100
#: Most chunks in a merged tree, unless there are thousands.
_BLOCK = 64


def plan_layers(staged: Sequence[Staged], limit: int = MAX_LAYERS) -> list[tuple[str, ...]]:
    """Group ``staged`` into at most ``limit`` layers, keeping their order.

    A group of one key is that chunk's own layer; longer groups are merged.  Blocks of whole strata
    are merged, from the lowest and no more than needed, since every chunk above them can use the
    same merged tree.  If that is not enough, all chunks are cut into longer blocks.
    """
    if len(staged) <= limit:
        return [(item.key,) for item in staged]
    runs = groupby(staged, key=lambda item: item.stratum)
    blocks = [block for _, run in runs for block in _cut([item.key for item in run], _BLOCK)]
    count = len(staged)
    groups: list[tuple[str, ...]] = []
    for block in blocks:
        if count > limit:
            groups.append(block)
            count -= len(block) - 1
        else:
            groups.extend((key,) for key in block)
    size = _BLOCK
    while len(groups) > limit:
        size *= 2
        groups = _cut([item.key for item in staged], size)
    return groups


def _cut(keys: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(keys[start : start + size]) for start in range(0, len(keys), size)]


class Index(msgspec.Struct, frozen=True):
    """The facts about a layer that are needed to lay it over others, without walking it."""

    dirs: frozenset[bytes]
    links: Mapping[bytes, bytes]  # symlinks and their targets
    has: tuple[bytes, ...]  # the paths of _NOTED that are in it


#: Made at import (see `fabric.building.attempt`).
_decode = msgspec.msgpack.Decoder(Index).decode


#: Paths whose presence in a staging area is reported.
_NOTED = (b"etc/ld.so.conf", b"sbin/ldconfig", b"usr/sbin/ldconfig")
#: Above so many entries, reading a recorded index is quicker than making it.
_WORTH_RECORDING = 300
#: Directories of a layer that appear at another path: (from, to).
Moves = tuple[tuple[bytes, bytes], ...]


def see_through(indexes: Mapping[str, Index], name: Callable[[str], str]) -> list[Moves]:
    """For each layer, lowest first, its directories that are symlinks in a lower layer.

    A chunk may bring ``/lib -> usr/lib`` and the next install into ``/lib``.  Overlayfs would
    hide the symlink, and with it the contents of ``usr/lib``; the format merges directories
    through symlinks.  Clash if the symlink leads to no directory, or covers one; ``name`` gives
    the name of a chunk by its key.
    """
    links: dict[bytes, bytes] = {}
    dirs: set[bytes] = set()
    owner: dict[bytes, str] = {}  # of links and dirs
    found: list[Moves] = []
    if not any(index.links for index in indexes.values()):
        return [()] * len(indexes)
    for key, index in indexes.items():
        moves = []
        for path in sorted(index.dirs & links.keys()):
            target = follow(path, links)
            if target not in dirs and target not in index.dirs:
                raise Clash(path, "a directory", name(key), "a symlink", name(owner[path]))
            moves.append((path, target))
        found.append(tuple(moves))
        if moves:
            index = moved(index, dict(moves))
        for path in sorted(index.links.keys() & dirs):
            raise Clash(path, "a symlink", name(key), "a directory", name(owner[path]))
        links |= index.links
        dirs |= index.dirs
        owner |= dict.fromkeys(index.links, key)
        owner |= dict.fromkeys(index.dirs, key)
    return found


def moved(index: Index, moves: Mapping[bytes, bytes]) -> Index:
    """The index of a layer after its directories were moved."""
    return Index(
        frozenset(place(path, moves) for path in index.dirs),
        {place(path, moves): target for path, target in index.links.items()},
        index.has,
    )


def place(path: bytes, moves: Mapping[bytes, bytes]) -> bytes:
    """Where a path of a layer appears after its directories were moved."""
    tail = b""
    while path and path not in moves:
        path, _, name = path.rpartition(b"/")
        tail = b"/" + name + tail
    return (moves[path] + tail if path else tail).strip(b"/")


class Layer(msgspec.Struct, frozen=True):
    """A chunk unpacked."""

    path: Path
    index: Index
    output: str  # digest in hex of what it was unpacked from (`contents.output_of`)


class Stack(NamedTuple):
    """Directories to overlay for staged chunks."""

    paths: list[Path]  # the lowest first
    has: frozenset[bytes]  # which of _NOTED they have
    outputs: tuple[str, ...]  # of each chunk: `Layer.output`


class Layers:
    """The layers of one workspace."""

    def __init__(self, session: Session, store: Store) -> None:
        self.session = session
        self._store = store
        self._known: dict[str, Layer] = {}  # layers that exist and are held
        self._names: dict[str, str] = {}  # key of a chunk -> name of its layer
        self._checked: set[str] = set()  # names of trees that are as recorded

    def stage(
        self,
        staged: Sequence[Staged],
        cancel: CancelToken,
        report: Progress = silent,
        moved: Moved = unmoved,
    ) -> Stack:
        """The directories to overlay for ``staged``.

        Missing layers are fetched, which ``moved`` follows, and unpacked.  So are layers that have
        changed on the disk, for which ``report`` is called.  BuildFailed if two chunks conflict,
        MachineFault if one is missing.
        """
        laid = self.laid(staged, cancel, report, moved)
        found = []
        for block in plan_layers(staged):
            layer, moves = laid[block[0]]
            if len(block) == 1 and not moves:
                found.append(layer.path)
            else:
                found.append(self._merged([laid[key] for key in block], cancel, report))
        # Equal chunks share a layer, which overlayfs does not take twice: the topmost counts.
        found = [*dict.fromkeys(reversed(found))][::-1]
        if len(found) > MAX_LAYERS:
            raise AssertionError(f"{len(found)} layers")  # the lowest would be lost silently
        has = frozenset(path for layer, _ in laid.values() for path in layer.index.has)
        return Stack(found, has, tuple(laid[one.key][0].output for one in staged))

    def laid(
        self,
        staged: Sequence[Staged],
        cancel: CancelToken,
        report: Progress = silent,
        moved: Moved = unmoved,
    ) -> dict[str, tuple[Layer, Moves]]:
        """The layer of each chunk, lowest first, with its moves; for the rest as `stage`."""
        keys = [item.key for item in staged]
        self.session.hold(*map(self._layer_name, keys))
        self._store.use(keys)
        self._bring([key for key in keys if key not in self._known], cancel, moved)
        layers = {key: self._known.get(key) or self._layer(key, cancel, report) for key in keys}
        indexes = {key: layer.index for key, layer in layers.items()}
        moves = see_through(indexes, self._name)
        return {key: (layers[key], each) for key, each in zip(indexes, moves, strict=True)}

    def forget(self, name: str) -> None:
        """Forget a layer or a merged tree that is being removed."""
        self._known = {key: one for key, one in self._known.items() if one.path.name != name}
        self._checked.discard(name)

    def forget_all(self) -> None:
        """Forget all layers and merged trees: another process may have removed some."""
        self._known.clear()
        self._names.clear()
        self._checked.clear()

    def made(
        self,
        names: object,
        make: Callable[[Path], None],
        cancel: CancelToken,
        report: Progress = silent,
    ) -> Path:
        """The directory identified by ``names`` (any plain data), made if it is missing."""

        def unnamed(into: Path) -> bytes:
            make(into)
            return b""

        digest = hashlib.sha256(msgspec.msgpack.encode(names)).hexdigest()
        path = self.session.root / "merged" / digest
        self.session.hold(digest)
        if not (mark_used(path) and (digest in self._checked or self._believed(path))):
            with self.session.locked(digest, cancel):
                self._make_sure(path, unnamed, lambda tree: b"", report, times=False)  # noqa: ARG005
        return path

    def adopt(self, key: str, tree: Path, output: bytes) -> None:
        """Rename ``tree`` to the layer of the chunk ``key``, unless that exists.

        It is what unpacking the artifacts with the digest ``output`` would give.
        """
        path = self._path(key)
        if not path.exists():
            self._record(key, Record(table_of(tree), origin=output))
        self._rename(tree, path)

    def check(self, key: str, cancel: CancelToken, report: Progress) -> None:
        """Compare a layer with the store's artifacts, and make it again if they differ."""
        clear(self._record_file(key))
        self.forget(key)
        self.session.hold(key)
        self._layer(key, cancel, report)

    def is_believed(self, path: Path) -> bool:
        """Whether a layer or a merged tree is as it was recorded."""
        return self._believed(path) is not None

    def _layer_name(self, key: str) -> str:
        """The key, or the digest of the output, which equal chunks share."""
        found = self._names.get(key)
        if found is None:
            manifest = None if self._path(key).is_dir() else self._store.manifest(key)
            equal = manifest is not None and manifest.origin
            found = self._names[key] = output_of(manifest).hex() if manifest and equal else key
        return found

    def _path(self, key: str) -> Path:
        return self.session.root / "layers" / Digest(key)

    def _name(self, key: str) -> str:
        manifest = self._store.manifest(key)
        return manifest.name if manifest else key

    def _merged(
        self,
        group: Sequence[tuple[Layer, Moves]],
        cancel: CancelToken,
        report: Progress,
    ) -> Path:
        """One directory with the layers of ``group``, later ones over earlier ones."""

        def make(into: Path) -> None:
            merger = Merger(into)
            for layer, moves in group:
                cancel.check()
                merger.lay(layer.path, moves=dict(moves))
            merger.finish(MTIME)

        return self.made([(layer.output, moves) for layer, moves in group], make, cancel, report)

    def _bring(self, keys: Sequence[str], cancel: CancelToken, moved: Moved) -> None:
        """Fetch the artifacts of missing layers, in parallel."""
        absent = [key for key in keys if not self._path(self._layer_name(key)).is_dir()]
        if len(absent) > 1:
            found = filter(None, self._store.manifests(absent))
            wanted = [(each.key, one.blob) for each in found for one in each.artifacts if one.blob]
            self._store.bring(wanted, cancel.check, moved)

    def _layer(self, key: str, cancel: CancelToken, report: Progress) -> Layer:
        """The layer of a chunk, which must be held; it is unpacked if it is missing."""
        path = self._path(self._layer_name(key))
        record = self._believed(path) if mark_used(path) else None
        if record is not None and not record.origin:  # written by an older version
            clear(self._record_file(path.name))
            record = None
        if record is None:
            with self.session.locked(f"layer-{path.name}", cancel):
                record = self._make_sure(
                    path, lambda into: self._unpack(key, into, cancel), _indexed, report
                )
        index = _decode(record.about) if record.about else look_through(path)[0]
        layer = self._known[key] = Layer(path, index, record.origin.hex())
        return layer

    # -- trees on the disk, and whether they are as recorded -----------------------------------

    def _believed(self, path: Path) -> Record | None:
        """The record of a tree, if it is as it was recorded."""
        record = read_record(self._record_file(path.name))
        if record is None:
            return None
        try:
            table = table_of(path)
        except OSError:  # missing, or partly removed
            return None
        if not record.table.same(table):
            return None
        if table != record.table:
            self._record(path.name, replace(record, table=table))
        self._checked.add(path.name)
        return record

    def _make_sure(
        self,
        path: Path,
        make: Callable[[Path], bytes],
        about: Callable[[Path], bytes],
        report: Progress,
        *,
        times: bool = True,
    ) -> Record:
        """Make the tree at ``path`` by ``make`` unless it is as recorded; return its record.

        The caller has its lock.  A tree that differs from its record is made again beside it, and
        replaced if they differ (without ``times``: in more than their times).  ``make`` returns the
        digest of what it makes the tree from, and ``about`` the data to record of the tree.
        """
        record = self._believed(path)
        if record is not None:  # another process made it before we had the lock
            return record
        scratch = self.session.scratch()
        try:
            origin = make(scratch)
            if wrong := _difference(scratch, path, times=times):
                report(f"{path} has changed on the disk, at {wrong!r}: it is made again")
                # other builds may have it mounted, so it is deleted when this process ends
                path.rename(self.session.scratch() / path.name)
                # other processes may know the former one
                remember(self.session.root / "cleaned", b"")
            self._rename(scratch, path)
        finally:
            self.session.discard(scratch)
        record = Record(table_of(path), about(path), origin)
        self._record(path.name, record)
        self._checked.add(path.name)
        return record

    def _rename(self, tree: Path, path: Path) -> None:
        """Rename a tree, unless the new name exists."""
        try:
            tree.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.session.discard(tree)

    def _record_file(self, name: str) -> Path:
        return self.session.root / "indexes" / name

    def _record(self, name: str, record: Record) -> None:
        write_record(self._record_file(name), record, self.session.unused_name())

    def _unpack(self, key: str, into: Path, cancel: CancelToken) -> bytes:
        """Unpack the artifacts of a chunk; returns the digest of its output."""
        manifest = self._store.manifest(key)
        if manifest is None:
            raise MachineFault(
                f"The artifact store has no chunk {key}, which is to be staged", (key,)
            )
        unpacker = Unpacker(into, cancel.check)
        for artifact in manifest.artifacts:
            if artifact.blob is not None:
                with self._store.open(artifact.blob, key, cancel.check) as file:
                    unpacker.add(file, artifact.name)
        unpacker.finish()
        return output_of(manifest)


def _difference(fresh: Path, path: Path, *, times: bool) -> str:
    """The first path where ``path`` differs from ``fresh``; "" if it does not exist."""
    if path.is_dir():
        return difference(fresh, path, times=times)
    return path.name if os.path.lexists(path) else ""


def _indexed(tree: Path) -> bytes:
    """The encoded index of a layer; empty if making it again is quicker than reading it."""
    index, entries = look_through(tree)
    return msgspec.msgpack.encode(index) if entries > _WORTH_RECORDING else b""


def look_through(tree: Path) -> tuple[Index, int]:
    """The index of a tree, and its number of entries."""
    dirs: set[bytes] = set()
    links: dict[bytes, bytes] = {}
    count = 0
    top = os.fsencode(tree)
    pending = [b""]
    with Opener() as opener:
        while pending:
            parent = pending.pop()
            for item in opener.listing(top + b"/" + parent):
                count += 1
                path = parent + b"/" + item.name if parent else item.name
                if item.is_dir(follow_symlinks=False):
                    dirs.add(path)
                    pending.append(path)
                elif item.is_symlink():
                    links[path] = os.readlink(item.path)  # noqa: PTH115 - bytes
        places = {path: follow(path, links) for path in _NOTED} if dirs else {}
        has = tuple(
            path
            for path, place in places.items()
            if place.rpartition(b"/")[0] in dirs and os.path.lexists(top + b"/" + place)
        )
    return Index(frozenset(dirs), links, has), count
