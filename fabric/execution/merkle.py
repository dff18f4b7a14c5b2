"""Makes Merkle trees of directories that never change, and lays such trees over one another.

A tree is a `Directory` message for each directory, named by its SHA-256.  The tree of a layer is
made once, and kept beside the layer.  Of trees that are laid over one another, only directories
that several of them have are made anew.

Modes and times are node properties, which an engine may ignore.
"""

# Paths here are bytes, which pathlib does not take.
# ruff: noqa: PTH115
from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from fabric import bounds
from fabric.building.engine import Unsuitable
from fabric.building.tree import Opener
from fabric.errors import MachineFault, in_line
from fabric.host.files import recall, remember, sealed, unsealed
from fabric.host.tree_tables import read_record
from fabric.reapi.blobs import Digest, open_file
from fabric.reapi.protocol import remote_execution_pb2 as pb

#: The end of the name of a layer's record here, in the folder of indexes.
DIGESTS = ".digests"
_PIECE = 1 << 20
#: Modes of files that `is_executable` tells.
_PLAIN = (0o644, 0o755)
_name = attrgetter("name")


class Tree(msgspec.Struct, frozen=True):
    """A Merkle tree: its root, its directories by SHA-256, and the path of its files."""

    root: Digest
    directories: Mapping[str, bytes]
    path: bytes = b""

    def blobs(self) -> Iterator[tuple[Digest, bytes, bytes]]:
        """(digest, contents, b"") of each directory, and (digest, b"", path) of each file."""
        pending = [(self.root, self.path)]
        while pending:
            digest, path = pending.pop()
            data = self.directories[digest.sha256]
            yield digest, data, b""
            directory = pb.Directory.FromString(data)
            for file in directory.files:
                yield Digest.taken(file.digest), b"", path + b"/" + file.name.encode()
            for below in directory.directories:
                pending.append((Digest.taken(below.digest), path + b"/" + below.name.encode()))


K = TypeVar("K")


class Record(msgspec.Struct, frozen=True):
    """A tree on the disk, and the table of the directory that it was made of."""

    table: bytes
    root: Digest
    directories: dict[str, bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Trees:
    """Trees of layers, in memory and on the disk; ``indexes`` has the records of the layers."""

    def __init__(self, indexes: Path) -> None:
        self._indexes = indexes
        self._lock = threading.Lock()
        self._layers: _Cache[tuple[str, int]] = _Cache()  # by path and inode
        self._laid: _Cache[tuple[Digest, ...]] = _Cache()

    def of_layer(self, path: Path, check: Callable[[], None]) -> Tree:
        """The tree of a layer or a merged tree.  Unsuitable if no engine can hold it."""
        id = (str(path), path.stat().st_ino)
        with self._lock:
            tree = self._layers.get(id)
        if tree is None:
            tree = self._recorded(path, check)
            with self._lock:
                self._layers.put(id, tree)
        return tree

    def laid(self, trees: Sequence[Tree]) -> Tree:
        """The trees laid over one another, the lowest first.

        It has its root and the directories that none of ``trees`` has, and no files.
        """
        id = tuple(tree.root for tree in trees)
        with self._lock:
            found = self._laid.get(id)
        if found is None:
            made: dict[str, bytes] = {}
            root = _lay([(tree, tree.root) for tree in trees], made, 0)
            if len(trees) == 1:
                made[root.sha256] = trees[0].directories[root.sha256]
            found = Tree(root, made)
            with self._lock:
                self._laid.put(id, found)
        return found

    def _recorded(self, path: Path, check: Callable[[], None]) -> Tree:
        """The tree as recorded on the disk; it is made, and recorded, if the layer is another."""
        record = read_record(self._indexes / path.name)
        file = self._indexes / f"{path.name}{DIGESTS}"
        if record is not None and (content := unsealed(recall(file))) is not None:
            with suppress(msgspec.DecodeError):
                known = _decode(content)
                if known.table == record.table.base:
                    return Tree(known.root, known.directories, os.fsencode(path))
        tree = tree_of(path, check)
        if record is not None:
            content = _encode(Record(record.table.base, tree.root, dict(tree.directories)))
            remember(file, sealed(content))
        return tree


class _Cache(Generic[K]):
    """Trees within a bound on their bytes; those used last stay."""

    def __init__(self) -> None:
        self._trees: dict[K, tuple[Tree, int]] = {}
        self._bytes = 0

    def get(self, key: K) -> Tree | None:
        found = self._trees.pop(key, None)
        if found is None:
            return None
        self._trees[key] = found
        return found[0]

    def put(self, key: K, tree: Tree) -> None:
        size = sum(map(len, tree.directories.values()))
        _, before = self._trees.pop(key, (tree, 0))  # two slots may have made it at once
        self._trees[key] = (tree, size)
        self._bytes += size - before
        while self._bytes > bounds.ENGINE_TREES and len(self._trees) > 1:
            _, size = self._trees.pop(next(iter(self._trees)))
            self._bytes -= size


def tree_of(top: Path, check: Callable[[], None]) -> Tree:
    """The tree of a directory.  ``check`` is called for each file, and may raise.

    Unsuitable if an engine cannot hold it: the API has no FIFO, and names are UTF-8.
    """
    made: dict[str, bytes] = {}
    files: dict[tuple[int, int], Digest] = {}  # by inode: hard links are read once

    def directory(path: bytes, depth: int) -> Digest:
        _bounded(path, depth)
        info = os.lstat(path)
        message = pb.Directory(
            node_properties=_properties(info, stat.S_IMODE(info.st_mode) == 0o755)
        )
        for item in sorted(opener.listing(path), key=lambda item: item.name):
            check()
            name = _text(item.name, item.path)
            if item.is_symlink():
                target = _text(os.readlink(item.path), item.path)
                message.symlinks.add(name=name, target=target)
            elif item.is_dir(follow_symlinks=False):
                below = directory(item.path, depth + 1)
                message.directories.add(name=name, digest=below.message())
            elif item.is_file(follow_symlinks=False):
                info = item.stat(follow_symlinks=False)
                inode = (info.st_dev, info.st_ino)
                if inode not in files:
                    files[inode] = _digest(item.path, info, check)
                mode = stat.S_IMODE(info.st_mode)
                message.files.add(
                    name=name,
                    digest=files[inode].message(),
                    is_executable=bool(mode & 0o100),
                    node_properties=_properties(info, mode in _PLAIN),
                )
            else:
                raise Unsuitable(f"/{in_line(item.path)} is no file that an engine can have")
        return add(message, made)

    with Opener() as opener:
        root = directory(os.fsencode(top), 0)
    return Tree(root, made, os.fsencode(top))


def add(message: pb.Directory, to: dict[str, bytes]) -> Digest:
    """Add a directory to a tree; returns its digest."""
    data = message.SerializeToString(deterministic=True)
    digest = Digest.of(data)
    to[digest.sha256] = data
    return digest


class _Laid(NamedTuple):
    """What is seen of directories that are laid over one another."""

    message: pb.Directory  # without its directories
    below: Mapping[str, Sequence[tuple[Tree, Digest]]]  # the parts of each directory


def _lay(parts: Sequence[tuple[Tree, Digest]], made: dict[str, bytes], depth: int) -> Digest:
    """Lay directories over one another, the lowest first, as overlayfs does; returns the digest."""
    if len(parts) == 1:
        return parts[0][1]
    _bounded(b"", depth)
    contents = [tree.directories[digest.sha256] for tree, digest in parts]
    message, below = _joined(parts, contents) or _covered(parts, contents)
    message.files.sort(key=_name)
    message.symlinks.sort(key=_name)
    for name in sorted(below):
        digest = _lay(below[name], made, depth + 1)
        message.directories.add(name=name, digest=digest.message())
    return add(message, made)


def _joined(parts: Sequence[tuple[Tree, Digest]], contents: Sequence[bytes]) -> _Laid | None:
    """The directories as one; None if a name of one covers that of another.

    Nodes are neither copied nor looked at one by one: there may be 100,000.
    """
    message = pb.Directory.FromString(b"".join(contents))  # joins what is repeated
    names = [node.name for nodes in (message.files, message.symlinks) for node in nodes]
    folders = {node.name for node in message.directories}
    if len(folders.union(names)) != len(folders) + len(names):
        return None
    below: dict[str, list[tuple[Tree, Digest]]] = {}
    if folders:
        del message.directories[:]
        for (tree, _), content in zip(parts, contents, strict=True):
            for node in pb.Directory.FromString(content).directories:
                below.setdefault(node.name, []).append((tree, Digest.taken(node.digest)))
    message.node_properties.CopyFrom(pb.Directory.FromString(contents[-1]).node_properties)
    return _Laid(message, below)


def _covered(parts: Sequence[tuple[Tree, Digest]], contents: Sequence[bytes]) -> _Laid:
    """The directories without what is covered."""
    files: dict[str, pb.FileNode] = {}
    links: dict[str, pb.SymlinkNode] = {}
    below: dict[str, list[tuple[Tree, Digest]]] = {}
    message = pb.Directory()
    for (tree, _), content in zip(parts, contents, strict=True):
        part = pb.Directory.FromString(content)
        message.node_properties.CopyFrom(part.node_properties)
        its_files = {node.name: node for node in part.files}
        its_links = {node.name: node for node in part.symlinks}
        its_folders = {node.name: (tree, Digest.taken(node.digest)) for node in part.directories}
        _drop(its_files, links, below)
        _drop(its_links, files, below)
        _drop(its_folders, files, links)
        files |= its_files
        links |= its_links
        for name, folder in its_folders.items():
            below.setdefault(name, []).append(folder)
    message.files.extend(files.values())
    message.symlinks.extend(links.values())
    return _Laid(message, below)


def _drop(names: Mapping[str, object], *covered: dict[str, Any]) -> None:
    """Remove these names from what they cover."""
    for nodes in covered:
        for name in names.keys() & nodes.keys():
            del nodes[name]


def _properties(info: os.stat_result, plain: bool) -> pb.NodeProperties:
    properties = pb.NodeProperties()
    properties.mtime.FromNanoseconds(info.st_mtime_ns)
    if not plain:
        properties.unix_mode.value = stat.S_IMODE(info.st_mode)
    return properties


def _digest(path: bytes, info: os.stat_result, check: Callable[[], None]) -> Digest:
    """The digest of a file.  MachineFault if it is not as long as it was."""
    sha256, size = hashlib.sha256(), 0
    with open_file(path) as file:
        while piece := file.read(_PIECE):
            check()
            sha256.update(piece)
            size += len(piece)
    if size != info.st_size:
        raise MachineFault(f"{in_line(path)} changed while it was read")
    return Digest(sha256.hexdigest(), size)


def _text(name: bytes, path: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Unsuitable(f"the name or target of {in_line(path)!r} is not UTF-8") from None


def _bounded(path: bytes, depth: int) -> None:
    if depth > bounds.ENGINE_DEPTH:
        raise Unsuitable(
            f"{in_line(path[:60])}... is deeper than {bounds.ENGINE_DEPTH} directories"
        )
