"""Merkle trees of layers, and of layers laid over one another."""

# ruff: noqa: PTH102, PTH211 - some names here are bytes
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
from building_kit import Kit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fabric import bounds
from fabric.building.engine import Unsuitable
from fabric.building.tree import remove
from fabric.execution import merkle
from fabric.execution.merkle import Tree, Trees, tree_of
from fabric.host.cancel import no_check
from fabric.host.files import sealed
from fabric.jobs import Staged
from fabric.reapi import blobs
from fabric.reapi.blobs import Digest
from fabric.reapi.protocol import remote_execution_pb2 as pb

#: A directory: by name, the contents of a file, ("link", target), or a directory.
Plain = Mapping[str, "bytes | tuple[str, str] | Plain"]


def write(tree: Plain, to: Path) -> Path:
    to.mkdir()
    for name, item in tree.items():
        if isinstance(item, bytes):
            (to / name).write_bytes(item)
        elif isinstance(item, tuple):
            (to / name).symlink_to(item[1])
        else:
            write(item, to / name)
    return to


def read(trees: list[Tree], root: Digest, contents: Mapping[str, bytes]) -> Plain:
    """A tree as its digests say; the files' ``contents`` by digest."""
    data = next(tree.directories[root.sha256] for tree in trees if root.sha256 in tree.directories)
    directory = pb.Directory.FromString(data)
    assert Digest.of(data) == root
    for nodes in (directory.files, directory.directories, directory.symlinks):
        assert [each.name for each in nodes] == sorted(each.name for each in nodes)
    names = [
        each.name
        for nodes in (directory.files, directory.directories, directory.symlinks)
        for each in nodes
    ]
    assert len(names) == len(set(names))
    return {
        **{each.name: contents[each.digest.hash] for each in directory.files},
        **{each.name: ("link", each.target) for each in directory.symlinks},
        **{
            each.name: read(trees, Digest.taken(each.digest), contents)
            for each in directory.directories
        },
    }


def over(low: Plain, high: Plain) -> Plain:
    """A directory over another, by the rules of overlayfs."""
    made = dict(low)
    for name, item in high.items():
        below = made.get(name)
        made[name] = (
            over(below, item) if isinstance(below, dict) and isinstance(item, dict) else item
        )
    return made


NAMES = st.sampled_from("abc")
ITEMS: SearchStrategy[Plain] = st.recursive(
    st.dictionaries(NAMES, st.binary(max_size=2) | st.just(("link", "a")), max_size=3),
    lambda below: st.dictionaries(NAMES, st.binary(max_size=2) | below, max_size=3),
    max_leaves=8,
)


@given(layers=st.lists(ITEMS, min_size=1, max_size=4))
def test_layers_lie_over_one_another_as_in_overlayfs(
    layers: list[Plain], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    found = [
        tree_of(write(layer, folder / str(number)), no_check) for number, layer in enumerate(layers)
    ]
    contents = {
        digest.sha256: Path(os.fsdecode(path)).read_bytes()
        for tree in found
        for digest, _, path in tree.blobs()
        if path
    }
    laid = Trees(folder).laid(found)
    expected: Plain = {}
    for layer in layers:
        expected = over(expected, layer)
    assert read([laid, *found], laid.root, contents) == expected
    remove(folder)


def test_directories_of_one_layer_are_not_made_anew(tmp_path: Path) -> None:
    one = tree_of(write({"usr": {"a": {"x": b"1"}, "both": b""}}, tmp_path / "1"), no_check)
    two = tree_of(write({"usr": {"b": {"y": b"2"}}}, tmp_path / "2"), no_check)
    laid = Trees(tmp_path).laid([one, two])
    assert len(laid.directories) == 2  # the root and usr


@pytest.mark.parametrize("name", ["one", "two"])
def test_directory_has_mode_and_time_of_the_highest_layer(tmp_path: Path, name: str) -> None:
    """Whether names of one layer cover those of another, or not."""
    layers = [
        write({"d": {name: b"1"}}, tmp_path / "1"),
        write({"d": {"two": b""}}, tmp_path / "2"),
    ]
    (layers[0] / "d").chmod(0o1777)
    os.utime(layers[1] / "d", ns=(5, 7))
    trees = [tree_of(layer, no_check) for layer in layers]
    laid = Trees(tmp_path).laid(trees)
    top = pb.Directory.FromString(laid.directories[laid.root.sha256])
    found = pb.Directory.FromString(laid.directories[top.directories[0].digest.hash])
    assert not found.node_properties.HasField("unix_mode")
    assert found.node_properties.mtime.ToNanoseconds() == 7


def test_modes_and_times_are_told(tmp_path: Path) -> None:
    top = write({"raised": b"1", "program": b"1", "folder": {}}, tmp_path / "1")
    (top / "raised").chmod(0o4711)
    (top / "program").chmod(0o755)
    (top / "folder").chmod(0o1777)
    os.utime(top / "raised", ns=(5, 683074800_000000007))
    tree = tree_of(top, no_check)
    directory = pb.Directory.FromString(tree.directories[tree.root.sha256])
    program, raised = directory.files
    assert program.is_executable
    assert not program.node_properties.HasField("unix_mode")
    assert raised.node_properties.unix_mode.value == 0o4711
    assert raised.node_properties.mtime.ToNanoseconds() == 683074800_000000007
    folder = pb.Directory.FromString(tree.directories[directory.directories[0].digest.hash])
    assert folder.node_properties.unix_mode.value == 0o1777


def test_hard_links_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = write({"a": b"1"}, tmp_path / "1")
    (top / "b").hardlink_to(top / "a")
    opened = counted(monkeypatch)
    tree = tree_of(top, no_check)
    assert len(opened) == 1
    assert len(list(tree.blobs())) == 3


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are read from now on."""
    opened: list[bytes] = []
    original = blobs.open_file

    def open_file(path: bytes) -> object:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(merkle, "open_file", open_file)
    return opened


def layer_of(kit: Kit, staged: Staged) -> Path:
    (path,) = kit.workspace.layers.stage([staged], kit.cancel).paths
    return path


def test_digests_of_a_layer_are_kept_beside_it(
    kit: Kit, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes = kit.workspace.root / "indexes"
    with kit.workspace.using():
        layer = layer_of(kit, staged)
        opened = counted(monkeypatch)
        first = Trees(indexes).of_layer(layer, no_check)
        read_once = len(opened)
        assert read_once > 10
        trees = Trees(indexes)
        second = trees.of_layer(layer, no_check)
        assert trees.of_layer(layer, no_check) is second
        assert (second.root, second.directories) == (first.root, first.directories)
        assert len(opened) == read_once
    kit.workspace.set_aside(layer)
    assert not list(indexes.glob("*.digests"))


def test_other_layer_at_a_path_is_read(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    layer = write({"file": b"1"}, tmp_path / "layer")
    first = trees.of_layer(layer, no_check)
    layer.rename(tmp_path / "old")
    write({"file": b"2"}, tmp_path / "layer")
    assert trees.of_layer(layer, no_check).root != first.root


def test_record_of_another_tree_of_that_name_does_not_count(
    kit: Kit, staged: Staged, tmp_path: Path
) -> None:
    indexes = kit.workspace.root / "indexes"
    with kit.workspace.using():
        layer = layer_of(kit, staged)
        right = Trees(indexes).of_layer(layer, no_check)
        other = tree_of(write({"file": b""}, tmp_path / "other"), no_check)
        wrong = merkle.Record(b"another table", other.root, dict(other.directories))
        for content in (sealed(msgspec.msgpack.encode(wrong)), b"damaged"):
            (indexes / f"{layer.name}.digests").write_bytes(content)
            assert Trees(indexes).of_layer(layer, no_check).root == right.root


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda top: os.mkfifo(top / "pipe"), r"/.*/pipe is no file that an engine can have"),
        (lambda top: os.mkdir(os.fsencode(top) + b"/\xff"), "is not UTF-8"),
        (lambda top: os.symlink(b"\xff", os.fsencode(top) + b"/link"), "is not UTF-8"),
    ],
)
def test_tree_that_no_engine_can_hold_is_refused(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path)
    with pytest.raises(Unsuitable, match=reason):
        tree_of(tmp_path, no_check)


@pytest.mark.bound("ENGINE_DEPTH")
def test_deep_tree_is_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * bounds.ENGINE_DEPTH)
    deep.mkdir(parents=True)
    tree_of(tmp_path, no_check)
    (deep / "d").mkdir()
    with pytest.raises(Unsuitable, match="is deeper than 256 directories"):
        tree_of(tmp_path, no_check)


@pytest.mark.bound("ENGINE_TREES")
def test_trees_used_last_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [write({name * 100: b""}, tmp_path / name) for name in "abc"]
    size = sum(map(len, tree_of(layers[0], no_check).directories.values()))
    monkeypatch.setattr(bounds, "ENGINE_TREES", 2 * size)
    trees = Trees(tmp_path)
    made = [trees.of_layer(layer, no_check) for layer in (*layers[:2], layers[0], layers[2])]
    assert trees.of_layer(layers[0], no_check) is made[0]
    assert trees.of_layer(layers[1], no_check) is not made[1]


@pytest.mark.bound("ENGINE_NODES")
def test_directories_used_last_stay_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [tree_of(write({name: b""}, tmp_path / name), no_check) for name in "abc"]
    taken: list[bytes] = []
    original = merkle._nodes

    def nodes(content: bytes) -> merkle._Nodes:
        taken.append(content)
        return original(content)

    monkeypatch.setattr(merkle, "_nodes", nodes)
    monkeypatch.setattr(bounds, "ENGINE_NODES", 2 * made[0].size())
    trees = Trees(tmp_path)
    for some in (made[:2], made[1::-1], made[1:], made[::2]):
        trees.laid(some)
    roots = [tree.directories[tree.root.sha256] for tree in made]
    assert taken == [*roots, roots[0]]


def test_tree_that_two_slots_make_at_once_counts_once(tmp_path: Path) -> None:
    trees = [tree_of(write({name: b""}, tmp_path / name), no_check) for name in "ab"]
    size = sum(map(len, trees[0].directories.values()))
    cache: merkle._Cache[str, Tree] = merkle._Cache()
    for name, tree in (("a", trees[0]), ("a", trees[0]), ("b", trees[1])):
        cache.put(name, tree, size, 2 * size)
    assert cache.get("a") is trees[0]
    assert cache.get("b") is trees[1]
