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


class Tree(msgspec.Struct, frozen=True):
    """A Merkle tree: its root, its directories by SHA-256, and the path of its files."""

    root: Digest
    directories: Mapping[str, bytes]
    path: bytes = b""

    def size(self) -> int:
        """The size of its directories."""
        return sum(map(len, self.directories.values()))

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
V = TypeVar("V")


class _Nodes(NamedTuple):
    """The nodes of a directory by name, files and links encoded as they are in it."""

    files: dict[str, bytes]
    directories: dict[str, Digest]
    links: dict[str, bytes]
    properties: bytes


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
        self._layers: _Cache[tuple[str, int], Tree] = _Cache()  # by path and inode
        self._laid: _Cache[tuple[Digest, ...], Tree] = _Cache()
        self._nodes: _Cache[str, _Nodes] = _Cache()  # of directories that several layers have

    def of_layer(self, path: Path, check: Callable[[], None]) -> Tree:
        """The tree of a layer or a merged tree.  Unsuitable if no engine can hold it."""
        id = (str(path), path.stat().st_ino)
        with self._lock:
            tree = self._layers.get(id)
        if tree is None:
            tree = self._recorded(path, check)
            with self._lock:
                self._layers.put(id, tree, tree.size(), bounds.ENGINE_TREES)
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
            root = self._lay([(tree, tree.root) for tree in trees], made, 0)
            if len(trees) == 1:
                made[root.sha256] = trees[0].directories[root.sha256]
            found = Tree(root, made)
            with self._lock:
                self._laid.put(id, found, found.size(), bounds.ENGINE_TREES)
        return found

    def _lay(
        self, parts: Sequence[tuple[Tree, Digest]], made: dict[str, bytes], depth: int
    ) -> Digest:
        """Lay directories over one another as overlayfs does, the lowest first; its digest."""
        if len(parts) == 1:
            return parts[0][1]
        _bounded(b"", depth)
        files: dict[str, bytes] = {}
        links: dict[str, bytes] = {}
        below: dict[str, list[tuple[Tree, Digest]]] = {}
        properties = b""
        for tree, digest in parts:
            nodes = self._nodes_of(digest, tree)
            _drop(nodes.files, links, below)
            _drop(nodes.links, files, below)
            _drop(nodes.directories, files, links)
            files |= nodes.files
            links |= nodes.links
            for name, each in nodes.directories.items():
                below.setdefault(name, []).append((tree, each))
            properties = nodes.properties
        folders = pb.Directory()
        for name in sorted(below):
            digest = self._lay(below[name], made, depth + 1)
            folders.directories.add(name=name, digest=digest.message())
        # in the order of the fields' numbers
        encoded = [files[name] for name in sorted(files)]
        encoded.append(_encoded(folders))
        encoded += [links[name] for name in sorted(links)]
        return _add(b"".join([*encoded, properties]), made)

    def _nodes_of(self, digest: Digest, tree: Tree) -> _Nodes:
        with self._lock:
            found = self._nodes.get(digest.sha256)
        if found is None:
            content = tree.directories[digest.sha256]
            found = _nodes(content)
            with self._lock:
                self._nodes.put(digest.sha256, found, len(content), bounds.ENGINE_NODES)
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


class _Cache(Generic[K, V]):
    """Values within a bound on their bytes; those used last stay."""

    def __init__(self) -> None:
        self._values: dict[K, tuple[V, int]] = {}
        self._bytes = 0

    def get(self, key: K) -> V | None:
        found = self._values.pop(key, None)
        if found is None:
            return None
        self._values[key] = found
        return found[0]

    def put(self, key: K, value: V, size: int, most: int) -> None:
        _, before = self._values.pop(key, (value, 0))  # two slots may have made it at once
        self._values[key] = (value, size)
        self._bytes += size - before
        while self._bytes > most and len(self._values) > 1:
            _, size = self._values.pop(next(iter(self._values)))
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
    return _add(_encoded(message), to)


def _add(data: bytes, to: dict[str, bytes]) -> Digest:
    digest = Digest.of(data)
    to[digest.sha256] = data
    return digest


def _nodes(content: bytes) -> _Nodes:
    found = pb.Directory.FromString(content)
    properties = pb.Directory(node_properties=found.node_properties)
    return _Nodes(
        {node.name: _encoded(pb.Directory(files=[node])) for node in found.files},
        {node.name: Digest.taken(node.digest) for node in found.directories},
        {node.name: _encoded(pb.Directory(symlinks=[node])) for node in found.symlinks},
        _encoded(properties),
    )


def _encoded(message: pb.Directory) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


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
