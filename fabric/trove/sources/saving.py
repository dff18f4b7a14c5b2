"""Turns the work in an edited chunk's work tree into patches."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fabric.trove.sources.git import Repository
from fabric.trove.sources.git_process import run
from fabric.trove.sources.work_trees import git_in

#: The name, after its number, of a patch with changes that are not committed.
CHANGES = "changes.patch"
#: Commits that are looked through for the one where the work began.
_FAR = 10_000


def patches(
    folder: Path, ours: Repository, before: str, after: str, number: int
) -> dict[str, bytes]:
    """File name -> content of the patches that lead from the tree ``before`` to ``after``.

    ``ours`` has the snapshots of the work tree in ``folder``.  Each commit since that with the tree
    ``before`` gives a patch, and what is not committed gives one.  It is all in one patch if there
    is no such commit, or a merge since.  The first patch has the ``number``.  SourceError if git
    cannot make them.
    """
    found: dict[str, bytes] = {}
    if begun := _commit_with(folder, before):
        found = _series(folder, begun, number)
        before = git_in(folder, "rev-parse", "HEAD^{tree}").strip()
    if before != after:
        options = ("--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv")
        content = ours.run("diff", *options, before, after) or b""
        found[f"{number + len(found):04}-{CHANGES}"] = content
    return found


def _commit_with(folder: Path, tree: str) -> str:
    """The last commit with a tree; "" if there is none, or a merge since."""
    listed = ("log", "--first-parent", f"--max-count={_FAR}", "--format=%H %T %P", "HEAD")
    for line in (run(["-C", str(folder), *listed], check=False) or b"").decode().splitlines():
        commit, its, *parents = line.split()
        if its == tree:
            return commit
        if len(parents) > 1:
            break
    return ""


def _series(folder: Path, begun: str, number: int) -> dict[str, bytes]:
    options = ("--no-signature", "--zero-commit", "--no-numbered", "--full-index", "--no-renames")
    with tempfile.TemporaryDirectory() as made:
        where = (f"--start-number={number}", f"--output-directory={made}")
        git_in(folder, "format-patch", "--quiet", *options, *where, f"{begun}..HEAD")
        return {file.name: file.read_bytes() for file in sorted(Path(made).iterdir())}
