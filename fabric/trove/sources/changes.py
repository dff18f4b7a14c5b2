"""Lists the differences between two trees of a repository, with the new contents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fabric import bounds
from fabric.errors import SourceError
from fabric.trove.sources.cat_file import CatFile
from fabric.trove.sources.git import Repository

#: Modes of entries of git trees.
FILE, PROGRAM, LINK, MODULE, ABSENT = "100644", "100755", "120000", "160000", "000000"


class Change(NamedTuple):
    """One path that differs: its modes before and after, ABSENT where it does not exist."""

    path: str
    before: str
    after: str
    content: bytes = b""  # after; the target of a link


def changes(repository: Repository, old: str, new: str) -> Iterator[Change]:
    """The paths that differ between the trees ``old`` and ``new``, in the order of paths.

    SourceError if an object is missing, or past a bound.
    """
    left = bounds.SOURCE_SIZE
    with CatFile(repository.path) as objects:  # it starts while the trees are compared
        listed = repository.run("diff-tree", "-r", "-z", "--no-renames", old, new) or b""
        words = listed.split(b"\0")
        for head, path in zip(words[::2], words[1::2], strict=False):
            before, after, _, sha, _ = head.decode().removeprefix(":").split(" ")
            content = b""
            if after not in (ABSENT, MODULE):
                objects.request(sha.encode())
                kind, size = objects.header()
                left -= size
                if kind != b"blob" or left < 0:
                    raise SourceError(f"{repository.path}: object {sha} cannot be read")
                content = b"".join(objects.pieces(size))
            yield Change(path.decode("utf-8", "surrogateescape"), before, after, content)
