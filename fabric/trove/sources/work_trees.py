"""Makes git work trees of sources for editing, and commits of what is in them.

An edit has a repository in the trove, ``edits/ID``.  It has the snapshots of the work tree, and
borrows all other objects from the repository of the work tree.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fabric.errors import SourceError
from fabric.host.files import recall, remember
from fabric.trove.sources import snapshot
from fabric.trove.sources.export import MTIME
from fabric.trove.sources.git import Repository
from fabric.trove.sources.git_process import run

#: The branch of a new work tree.
BRANCH = "edit"
#: The record of the last snapshot: commit and tree.
_LAST = "last.json"


def edit_id(chunk: str, root: Path) -> str:
    """The id of the edit of a chunk of the definitions in ``root``: a valid name in the trove."""
    readable = re.sub(r"[^A-Za-z0-9_+-]+", "-", chunk).strip("-")[:40]
    digest = sha256(os.fsencode(root) + b"\0" + chunk.encode()).hexdigest()
    return f"{readable or 'chunk'}-{digest[:12]}"


def create(source: Repository, commit: str, folder: Path) -> None:
    """Make ``folder``, empty or absent, a git work tree of a commit of ``source``.

    It has the branches of ``source`` as those of a remote, and its tags.  Files get the times of
    exported ones, so that make finds nothing to do in a tree that was built before it was packed.
    SourceError if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    git_in(folder, "init", "--quiet", f"--initial-branch={BRANCH}")
    upload = "git -c uploadpack.allowAnySHA1InWant=true upload-pack"
    refs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
    fetch = ("fetch", "--quiet", "--no-tags", f"--upload-pack={upload}", str(source.path))
    git_in(folder, *fetch, *refs, commit)
    git_in(folder, "reset", "--quiet", "--hard", commit)
    for name in filter(None, git_in(folder, "ls-files", "-z").split("\0")):
        os.utime(folder / name, (MTIME, MTIME), follow_symlinks=False)
    git_in(folder, "update-index", "-q", "--refresh")


def take(folder: Path, ours: Repository, parent: str, *, plain: bool) -> snapshot.Snapshot:
    """A snapshot of a work tree; ``ours`` keeps the last one.

    ``parent`` is a commit of the work tree's repository, or "".  ``plain``: there are no
    submodules.  SourceError if the folder cannot be read.
    """
    ours.create()
    record = ours.path / _LAST
    last = msgspec.json.decode(recall(record) or b'["",""]', type=tuple[str, str])
    taken = snapshot.take_work_tree(folder, ours.path, parent, snapshot.Snapshot(*last))
    borrowed = "".join(f"{path}\n" for path in taken.borrowed).encode()
    alternates = ours.path / "objects/info/alternates"
    if recall(alternates) != borrowed:
        remember(alternates, borrowed)
    if last != (taken.commit, taken.tree):
        if plain:
            ours.learn(taken.commit, taken.tree)
        remember(record, msgspec.json.encode((taken.commit, taken.tree)))
    return replace(taken, borrowed=(str(ours.path / "objects"),))


def has(folder: Path, commit: str) -> bool:
    """Whether the repository of a work tree has a commit."""
    return (
        run(["-C", str(folder), "cat-file", "-e", f"{commit}^{{commit}}"], check=False) is not None
    )


def unsaved(folder: Path, base: str, *, saved: bool) -> str:
    """The work in ``folder`` that would be lost with it, in words; "" if there is none.

    Work is a stash and, unless the present files are ``saved``, a file that differs from HEAD or a
    commit that neither ``base`` nor a tag nor a branch of a remote has.
    """
    if git_in(folder, "stash", "list"):
        return "a stash"
    if saved:
        return ""
    if changed := git_in(folder, "status", "--porcelain", "-z").split("\0")[:-1]:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"changes that are not committed: {changed[0][3:]}{more}"
    refs = ("HEAD", "--branches", "--not", "--remotes", "--tags", base)
    if commits := git_in(folder, "rev-list", "--oneline", *refs).splitlines():
        more = f" and {len(commits) - 1} more" if len(commits) > 1 else ""
        return f"commits that are nowhere else: {commits[0]}{more}"
    return ""


def git_in(folder: Path, *command: str) -> str:
    """The output of git in a work tree, with the repository's own configuration only."""
    try:
        return os.fsdecode(run(["-C", str(folder), *command]) or b"")
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}") from None
