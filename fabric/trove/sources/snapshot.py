"""Makes a commit of a user's work tree, without a change to the user's repository.

The commit includes changed, new and deleted files; ignored files and logs of builds are left out.
The index is a copy of the user's, so that only changed files are hashed.  New objects go into a
repository of ours, which borrows the others; no ref, stash or reflog changes, no hook or filter
runs.  For files in no repository, or ignored by the one around them, the index is our own.

The commit's tree is that of the given folder, wherever in its repository that is.  Its parent has
the tree of HEAD and no history, so that objects which the trove has are not sent again.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fabric import bounds
from fabric.errors import SourceError
from fabric.host.shared_files import scratch
from fabric.trove.sources.git_process import environment

#: Logs of builds are in the current folder, which is often the definitions'.
LOGS = ("build-step-*.log", ".build-step-logs-*.part")

#: Refs of the last snapshots of folders in no repository, by the names of their indexes.
TAKEN = "refs/taken/"
INDEX = "index-of-"

#: The user's hooks must not run, and the user's files must not change.
_QUIET = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
    *("-c", "core.splitIndex=false", "-c", "gc.auto=0", "-c", "core.bare=false"),
)


class Snapshot(msgspec.Struct, frozen=True):
    """``commit`` is in our repository, its objects there or in the directories ``borrowed``."""

    commit: str
    tree: str
    borrowed: tuple[str, ...] = ()

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which git finds the borrowed objects."""
        return {"GIT_ALTERNATE_OBJECT_DIRECTORIES": _path_list(self.borrowed)}


def take(root: Path, ours: Path, along: Sequence[Snapshot] = ()) -> Snapshot:
    """The files below ``root`` as a commit; ``ours`` is a bare repository.

    The commits ``along`` become parents of it, so that they are sent with it.
    SourceError if git cannot read something, or a new file is too large to be meant.
    """
    git = _Git(root, environment(private=False) | {"GIT_OPTIONAL_LOCKS": "0"})
    around = git.around()
    borrowed = [around.objects] if around else []
    borrowed += [path for one in along for path in one.borrowed]
    with _taken_in(git, around, ours, borrowed) as (git, tree):
        parents = [one.commit for one in along]
        if around and (before := git.ask("rev-parse", "--verify", f"HEAD:{around.prefix}")):
            parents.append(_commit(git, before, 0, "What a build was made from"))
        commit = _commit(git, tree, int(time.time()), "A build", *parents)
        if around is None:  # keeps the objects of its index
            git("update-ref", f"{TAKEN}{_index_name(root)}", commit)
    return Snapshot(commit, tree, tuple(borrowed))


def take_work_tree(root: Path, ours: Path, parent: str, last: Snapshot) -> Snapshot:
    """The files below ``root``, which is the top of a git work tree, as a commit.

    ``parent`` is a commit of the repository there, or "".  Equal files give equal commits: that of
    the ``last`` snapshot if nothing has changed.  SourceError as for `take`.
    """
    git = _Git(root, environment(private=False) | {"GIT_OPTIONAL_LOCKS": "0"})
    around = git.around(whole=True)
    if around is None or around.prefix:
        raise SourceError(f"{root}: this is not the top of a git work tree")
    with _taken_in(git, around, ours, [around.objects]) as (git, tree):
        commit = last.commit
        if tree != last.tree:
            commit = _commit(git, tree, 0, "An edit", *([parent] if parent else []))
    return Snapshot(commit, tree, (around.objects,))


def user() -> str:
    """The user's name, in a form that is valid in a ref."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such user in the password file
        name = ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "somebody"


class _Around(msgspec.Struct, frozen=True):
    """The user's repository around a folder."""

    prefix: str  # of the folder: "" or "definitions/"
    index: Path
    objects: str


class _Git(msgspec.Struct, frozen=True):
    """Git, run in a folder."""

    root: Path
    environ: Mapping[str, str]
    filters: frozenset[str] = frozenset()  # configured filters, which do not run

    def given(self, **environ: str) -> _Git:
        """The same git with more in its environment."""
        return replace(self, environ={**self.environ, **environ})

    def without_filters(self) -> _Git:
        """The same git with all filters disabled."""
        names = self.ask("config", "--null", "--name-only", "--get-regexp", r"^filter\.")
        filters = frozenset(
            name.removeprefix("filter.").rpartition(".")[0] for name in names.split("\0") if name
        )
        off = {
            f"filter.{name}.{what}": value
            for name in filters
            for what, value in (("clean", ""), ("process", ""), ("required", "false"))
        }
        count = int(self.environ.get("GIT_CONFIG_COUNT") or 0)
        added = {"GIT_CONFIG_COUNT": str(count + len(off))}
        for number, (key, value) in enumerate(off.items(), count):
            added |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return replace(self.given(**added), filters=filters)

    def around(self, *, whole: bool = False) -> _Around | None:
        """The user's repository, if it has the folder.  SourceError if git refuses to read it.

        With ``whole``, the folder is known to be in no other repository that ignores it.
        """
        done = self._run(
            *("rev-parse", "--show-prefix", "--show-object-format", "--path-format=absolute"),
            *("--git-path", "index", "--git-path", "objects"),
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            if "not a git repository" in said or "must be run in a work tree" in said:
                return None
            raise SourceError(f"{self.root}: {said.removeprefix('fatal: ').strip()}")
        prefix, kind, index, objects = os.fsdecode(done.stdout).splitlines()
        ignored = not whole and self._run("check-ignore", "--quiet", "VERSION").returncode == 0
        return None if ignored or kind != "sha1" else _Around(prefix, Path(index), objects)

    def __call__(self, *command: str, input: bytes = b"") -> str:
        """The output of git.  SourceError if it fails."""
        done = self._run(*command, input=input)
        if done.returncode:
            said = "; ".join(done.stderr.decode(errors="replace").strip().splitlines())
            raise SourceError(f"{self.root}: git cannot read the files here: {said}")
        return os.fsdecode(done.stdout)

    def ask(self, *command: str) -> str:
        """A line that git prints; "" if it fails."""
        done = self._run(*command)
        return "" if done.returncode else os.fsdecode(done.stdout).strip()

    def _run(self, *command: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *_QUIET, *command],
            cwd=self.root,
            input=input,
            capture_output=True,
            env=self.environ,
            check=False,
        )


@contextmanager
def _taken_in(
    git: _Git, around: _Around | None, ours: Path, borrowed: Sequence[str]
) -> Iterator[tuple[_Git, str]]:
    """The git whose index has the present files, and the tree of these."""
    known = around.index if around else ours / _index_name(git.root)
    with _copied(known, ours, keep=around is None) as index:
        git = git.given(
            GIT_INDEX_FILE=str(index),
            GIT_OBJECT_DIRECTORY=str(ours / "objects"),
            GIT_ALTERNATE_OBJECT_DIRECTORIES=_path_list(borrowed),
        ).without_filters()
        if around is None:
            git = git.given(GIT_DIR=str(ours), GIT_WORK_TREE=str(git.root))
        _take_in(git)
        prefix = around.prefix if around else ""
        yield git, git("write-tree", *([f"--prefix={prefix}"] if prefix else [])).strip()


def _commit(git: _Git, tree: str, at: int, message: str, *parents: str) -> str:
    """A commit of a tree; ``at``: Unix time."""
    who = {"NAME": user(), "EMAIL": f"{user()}@invalid", "DATE": f"@{at} +0000"}
    for role in ("AUTHOR", "COMMITTER"):
        git = git.given(**{f"GIT_{role}_{what}": value for what, value in who.items()})
    options = [word for parent in parents for word in ("-p", parent)]
    return git("commit-tree", "-m", message, *options, tree).strip()


def _take_in(git: _Git) -> None:
    """Update the index to the files."""
    unwanted = [part for pattern in LOGS for part in ("-x", pattern)]
    listed = git("ls-files", "-z", "--others", "--modified", "--exclude-standard", *unwanted)
    # A directory in this list is another repository, and no part of this one.
    changed = sorted({name for name in listed.split("\0") if name and not name.endswith("/")})
    for name in changed:
        path = git.root / name
        if path.is_file() and not path.is_symlink():
            size = path.stat().st_size
            if size > bounds.SNAPSHOT_FILE:
                raise SourceError(
                    f"{path}: {size // 1_000_000} MB are too much to be sent with a build; move it"
                    " elsewhere, or name it in .gitignore"
                )
    if changed:
        _check_filters(git, changed)
        names = b"".join(os.fsencode(name) + b"\0" for name in changed)
        git("update-index", "-z", "--add", "--remove", "--replace", "--stdin", input=names)


def _check_filters(git: _Git, changed: list[str]) -> None:
    """SourceError if a changed file is to go through a filter.

    A filter is a program that the repository names, so it does not run; but without it, a file to
    be encrypted might be sent as plain text.
    """
    if not git.filters:
        return
    names = b"".join(os.fsencode(name) + b"\0" for name in changed)
    words = git("check-attr", "-z", "--stdin", "filter", input=names).split("\0")
    for name, value in zip(words[::3], words[2::3], strict=False):
        if value in git.filters:
            raise SourceError(
                f"{git.root / name}: it has changed, and is to go through the filter {value!r} of"
                " .gitattributes, which is not run here: `git add` it, and submit the build again"
            )


@contextmanager
def _copied(known: Path, ours: Path, *, keep: bool) -> Iterator[Path]:
    """A copy of an index, to be changed; with ``keep`` it replaces the index at the end."""
    with scratch(ours, "taking-in-") as folder:
        copy = folder / "index"
        if known.exists():
            # With its mtime, by which git finds files that changed in the same moment.
            shutil.copy2(known, copy)
        yield copy
        if keep and copy.exists():
            copy.replace(known)


def _index_name(root: Path) -> str:
    return f"{INDEX}{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def _path_list(paths: Iterable[str]) -> str:
    """Paths as one of git's environment variables has them."""
    return ":".join('"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"' for path in paths)
