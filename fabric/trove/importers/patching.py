"""Applies patches to an imported commit, in git's object database.

``git apply --cached`` needs no work tree, so no patch can write to the disk or through a symbolic
link.  Context must fit exactly, as Debian requires, too; lines may have moved.  Patches are
untrusted: their size, and git's memory, time and output are bounded.
"""

from __future__ import annotations

import re
import resource
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.process import TooMuchOutput, converse
from fabric.host.shared_files import scratch
from fabric.trove.sources import git
from fabric.trove.sources.git_process import environment

#: What a patch may make: files and symbolic links; no submodules.
_MODES = (b"100644", b"100755", b"120000", b"000000")
_FAILED = re.compile(r"^error: patch failed: (.+):(\d+)$", re.M)
_ERROR = re.compile(r"^(?:error|fatal): (.+)$", re.M)
_NOT_FOUND = "error: while searching for:\n"
_NO_PATCH = "No valid patches in input"
_BINARY = re.compile(rb"^Binary files \S+ and \S+ differ\r?$", re.M)
#: Lines of the source that a message shows at most.
_SHOWN = 12


class Change(msgspec.Struct, frozen=True):
    """A patch to apply below ``prefix`` ("" or "doc/").

    ``where`` and ``name`` begin messages; ``advice``, a sentence, ends that of a misfit.
    """

    prefix: str
    where: str
    name: str
    content: bytes
    advice: str


def patched(
    repository: git.Repository,
    commit: str,
    ref: str,
    changes: Sequence[Change],
    cancel: CancelToken,
) -> str:
    """The commit like ``commit``, with changes applied in order; ``ref`` (full) is set to it.

    SourceError if one does not apply.
    """
    with scratch(repository.path, "patching-") as folder:
        git_there = _Git(repository, folder / "index", cancel)
        git_there.run("read-tree", commit)
        tree = commit
        for change in changes:
            _apply(git_there, change)
            before, tree = tree, git_there.run("write-tree").decode().strip()
            _check(git_there, change, before, tree)
        raw = git_there.run("cat-file", "commit", commit)
        made = b"tree " + tree.encode() + raw[raw.index(b"\n") :]
        sha = git_there.run("hash-object", "-w", "-t", "commit", "--stdin", input=made)
        git_there.run("update-ref", ref, sha.decode().strip())
    return sha.decode().strip()


class _Git:
    """Runs git with an index of its own, within bounds."""

    def __init__(self, repository: git.Repository, index: Path, cancel: CancelToken) -> None:
        self._command = ["git", "--git-dir", str(repository.path)]
        self._environment = environment() | {"GIT_INDEX_FILE": str(index)}
        self._folder = repository.path
        self._cancel = cancel

    def run(self, *args: str, input: bytes = b"") -> bytes:
        """The output of a command.  SourceError if it fails."""
        failure, output = self.attempt(*args, input=input)
        if failure:
            raise SourceError(f"{self._folder}: git cannot store the import: {failure}")
        return output

    def attempt(self, *args: str, input: bytes = b"") -> tuple[str, bytes]:
        """The errors of a command ("" if it succeeds), and its output."""
        with (
            subprocess.Popen(
                [*self._command, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._folder,
                env=self._environment,
                process_group=0,
            ) as process,
            self._cancel.child(process),
        ):
            _limit(process.pid, resource.RLIMIT_DATA, bounds.PATCH_MEMORY)
            _limit(process.pid, resource.RLIMIT_CPU, bounds.PATCH_TIME)
            try:
                output, errors = converse(process, input, most=bounds.GIT_OUTPUT)
            except TooMuchOutput:
                raise SourceError(
                    f"git {args[0]} prints more than {bounds.GIT_OUTPUT:,} bytes"
                ) from None
        text = errors.decode(errors="replace").strip()
        if process.returncode == -signal.SIGXCPU:
            return f"fatal: git needs more than {bounds.PATCH_TIME} seconds for it", b""
        return (text or "fatal: git gave no reason") if process.returncode else "", output


def _limit(process: int, kind: int, most: int) -> None:
    """Set the limit of a child, unless this machine's is lower."""
    _, hard = resource.prlimit(process, kind)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.prlimit(process, kind, (most, hard))


def _apply(git_there: _Git, change: Change) -> None:
    """Apply a patch to the index.  SourceError if it does not fit."""
    if _BINARY.search(change.content):
        raise _refused(change, "names binary files without their contents: use `git diff --binary`")
    command = ["apply", "--cached", "--whitespace=nowarn", "-p1", "--verbose"]
    if change.prefix:
        command.append(f"--directory={change.prefix}")
    failure, _ = git_there.attempt(*command, "-", input=change.content)
    if not failure:
        return
    if not re.search("^fatal: ", failure, re.M):
        absent, _ = git_there.attempt(*command, "--check", "-R", "-", input=change.content)
        if not absent:
            why = "changes nothing, since the source has its changes already."
            raise _refused(change, f"{why}\n{change.advice}")
    raise _refused(change, _reason(change, failure))


def _refused(change: Change, why: str) -> SourceError:
    return SourceError(f"{change.where}: the patch {change.name} {why}")


def _reason(change: Change, failure: str) -> str:
    """Why git does not apply a patch, with the lines that it does not find."""
    lines = change.content.split(b"\n")
    dos = [line.endswith(b"\r") for line in lines]
    if any(
        end and line.startswith((b"--- ", b"+++ ")) for line, end in zip(lines, dos, strict=True)
    ):
        return "has lines that end in CRLF: convert it, for example by `dos2unix`"
    if _NO_PATCH in failure and len(_ERROR.findall(failure)) == 1:
        return "has no changes: it must be the output of `git diff` or `diff -u`"
    found = _FAILED.search(failure)
    if found is None:
        reasons = [_in_words(one) for one in _ERROR.findall(failure) if _NO_PATCH not in one]
        why = "; ".join(dict.fromkeys(reasons)) or failure.splitlines()[-1]
        return f"does not apply: {why}.\n{change.advice}"
    path, line = found[1], int(found[2])
    number, at, closed = _hunk(lines, path.removeprefix(change.prefix), line)
    hunk = f"hunk {number} (line {at} of the patch)" if number else "a hunk"
    where = f"near line {line}"
    if number and not closed:
        where += "; without lines of context at its end, it fits the end of the file only"
    missing = failure.rpartition(_NOT_FOUND)[2].partition("\nerror: ")[0].rstrip("\n").split("\n")
    shown = "\n".join(f"  | {one}" for one in missing[:_SHOWN])
    more = "\n  | ..." if len(missing) > _SHOWN else ""
    crlf = ", which end in CRLF in the patch," if any(dos) else ""
    return (
        f"does not apply: {hunk} does not fit {path}, which has no such lines{crlf} {where}:\n"
        f"{shown}{more}\n{change.advice}"
    )


def _in_words(error: str) -> str:
    """An error of git about a path, without git's terms."""
    if found := re.fullmatch("(.+): does not exist in index", error):
        return f"the source has no {found[1]} (-p1: paths count without their first folder)"
    if found := re.fullmatch("(.+): already exists in index", error):
        return f"the source has a {found[1]} already"
    return error


def _hunk(lines: Sequence[bytes], path: str, line: int) -> tuple[int, int, bool]:
    """The number of the hunk of a file that begins at ``line``, its line in the patch, and whether
    it ends with context.

    (0, 0, False) if it is not found.
    """
    number, at, inside = 0, 0, False
    for index, text in enumerate(lines):
        if text.startswith((b"--- ", b"+++ ")) and not at:
            name = text[4:].partition(b"\t")[0].decode(errors="replace").rstrip()
            inside = name.partition("/")[2] == path or (inside and text.startswith(b"+++ "))
            number = 0
        elif at and not text.startswith((b" ", b"+", b"-", b"\\")):
            break
        elif inside and (start := re.match(rb"@@ -(\d+)", text)):
            number += 1
            if int(start[1]) == line:
                at = index + 1
    else:
        index = len(lines)
    return (number, at, lines[index - 1].startswith(b" ")) if at else (0, 0, False)


def _check(git_there: _Git, change: Change, before: str, tree: str) -> None:
    """SourceError if a patch has made what no source may have."""
    changed = git_there.run("diff-tree", "-r", "-z", "--no-renames", before, tree).split(b"\0")
    for head, path in zip(changed[::2], changed[1::2], strict=False):
        parts = path.split(b"/")
        if head.split()[1] not in _MODES:
            name = path.decode(errors="replace")
            raise _refused(
                change, f"makes {name} a submodule: name a lorry in `components` instead"
            )
        if (
            len(path) > bounds.SOURCE_PATH
            or len(parts) > bounds.TREE_DEPTH
            or max(map(len, parts)) > bounds.SOURCE_NAME
        ):
            raise _refused(
                change, f"makes a file with a path of {len(path):,} bytes, which is too long"
            )
