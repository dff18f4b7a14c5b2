"""Small repositories whose trees expand: each fails only its own source, at little cost."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path

import pytest

from fabric import bounds
from fabric.errors import SourceError
from fabric.trove.sources.resolve import Sources


class Objects:
    """A bare repository, written object by object as git would not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)

    def git(self, *args: str) -> None:
        subprocess.run(["git", "--git-dir", str(self.path), *args], check=True)

    def write(self, kind: str, data: bytes, size: int | None = None) -> str:
        """Store an object; ``size`` is the size in its header."""
        head = f"{kind} {len(data) if size is None else size}\0".encode()
        name = sha1(head + data).hexdigest()
        file = self.path / "objects" / name[:2] / name[2:]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(zlib.compress(head + data, 1))
        return name

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """A tree of (mode, name, object)."""
        parts = (f"{mode} {name}\0".encode() + bytes.fromhex(sha) for mode, name, sha in entries)
        return self.write("tree", b"".join(parts))

    def commit(self, tree: str, message: bytes = b"x\n") -> None:
        """Point main at a commit of that tree."""
        who = b"x <x> 1700000000 +0000"
        head = b"tree %s\nauthor %s\ncommitter %s\n\n" % (tree.encode(), who, who)
        self.git("update-ref", "refs/heads/main", self.write("commit", head + message))


def wide(objects: Objects, leaf: tuple[str, str]) -> None:
    """Ten to the power of nine paths in ten small trees."""
    mode, sha = leaf
    for _ in range(9):
        mode, sha = "40000", objects.tree(*((mode, f"f{n}", sha) for n in range(10)))
    objects.commit(sha)


def bomb(objects: Objects) -> None:
    wide(objects, ("100644", objects.write("blob", b"x")))


def bomb_of_nothing(objects: Objects) -> None:
    wide(objects, ("40000", objects.tree()))


def deep(objects: Objects, levels: int = bounds.TREE_DEPTH + 1) -> None:
    mode, sha = "100644", objects.write("blob", b"x")
    for _ in range(levels):
        mode, sha = "40000", objects.tree((mode, "d", sha))
    objects.commit(objects.tree((mode, "d", sha)))


def deeper(objects: Objects) -> None:
    deep(objects, 5000)


def large(objects: Objects) -> None:
    blob = objects.write("blob", b"x", bounds.SOURCE_SIZE + 1)
    objects.commit(objects.tree(("100644", "large", blob)))


def link(objects: Objects) -> None:
    blob = objects.write("blob", b"x" * (bounds.LINK_TARGET + 1))
    objects.commit(objects.tree(("120000", "link", blob)))


def modules(objects: Objects) -> None:
    """One section's long name before each of many variables."""
    text = b'[submodule "%s"]\n' % (b"x" * 200_000) + b"a\n" * 2000
    blob = objects.write("blob", text)
    commit = ("160000", "sub", "1" * 40)
    objects.commit(objects.tree(("100644", ".gitmodules", blob), commit))


def message(objects: Objects) -> None:
    objects.commit(objects.tree(), b"x" * (bounds.GIT_OUTPUT + 1))


@pytest.mark.bound("TREE_ENTRIES")
@pytest.mark.bound("TREE_DEPTH")
@pytest.mark.bound("SOURCE_SIZE")
@pytest.mark.bound("LINK_TARGET")
@pytest.mark.bound("GIT_OUTPUT")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (bomb, "more than 1,000,000 files and folders"),
        (bomb_of_nothing, "more than 1,000,000 files and folders"),
        (deep, "folders nested more than 200 deep"),
        (deeper, "folders nested more than 200 deep"),
        (large, "files of more than 68,719,476,736 bytes"),
        (link, "link, a link to more than 4,096 bytes"),
        (modules, "it printed more than 67,108,864 bytes"),
        (message, "it printed more than 67,108,864 bytes"),
    ],
)
def test_git_tree_past_a_bound_is_rejected(
    tmp_path: Path, make: Callable[[Objects], None], text: str
) -> None:
    make(Objects(tmp_path / "trove/git/thing.git"))
    sources = Sources(tmp_path / "trove", {}, None)
    with pytest.raises(SourceError) as error:
        sources.export(sources.resolve("thing", "main"))
    assert text in str(error.value)
    assert not list((tmp_path / "trove/trees").glob("*/*"))


def test_git_tree_within_the_bounds_is_exported(tmp_path: Path) -> None:
    deep(Objects(tmp_path / "trove/git/thing.git"), bounds.TREE_DEPTH - 1)
    sources = Sources(tmp_path / "trove", {}, None)
    tree = sources.export(sources.resolve("thing", "main"))
    assert (tree / os.path.join(*["d"] * bounds.TREE_DEPTH)).read_text() == "x"  # noqa: PTH118
