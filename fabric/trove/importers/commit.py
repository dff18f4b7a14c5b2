"""Commits imported files deterministically: the same files always make the same commit."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

import msgspec

from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.trove.sources import git
from fabric.trove.sources.git_process import environment

_AUTHOR = b"Fabric trove <trove@fabric.invalid>"
_CHUNK = 1024 * 1024


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Member(msgspec.Struct, frozen=True):
    """A file to commit.  Exactly one of ``content``, ``same_as`` is given."""

    path: str  # relative, "/" between parts, clean
    mode: str  # git's: "100644", "100755", "120000"
    size: int = 0  # bytes
    content: Readable | None = None  # read once, before the next member
    same_as: str = ""  # a hard link: the path of an earlier member


class Tree(msgspec.Struct, frozen=True):
    """Files to commit, and the time of the newest (Unix time), once all are read."""

    members: Iterator[Member]
    newest: list[int]

    @property
    def time(self) -> int:
        return max(self.newest, default=0)


class Part(msgspec.Struct, frozen=True):
    """A tree at its place in the commit."""

    prefix: str  # "" or "doc/"
    tree: Tree
    alone: str = ""  # if no earlier part may have anything there, its name for a message


def commit(
    repository: git.Repository,
    ref: str,
    parts: Iterable[Part],
    message: str,
    import_key: str,
    cancel: CancelToken,
    *,
    compress: bool = True,
) -> str:
    """Make a commit without parents of all ``parts``.

    ``ref`` (its full name) is set to it.  If all files of a part are in one top-level directory,
    that directory is left out.  Return the commit.
    """
    # beside the repository, so that a full TMPDIR does not matter
    with tempfile.TemporaryFile(dir=repository.path) as errors:
        process = subprocess.Popen(
            [
                *("git", "--git-dir", str(repository.path), "-c", "core.bigFileThreshold=8m"),
                *("-c", "core.fsync=committed", "-c", "fastimport.unpackLimit=0"),
                # packages are compressed already, and files of one version hardly similar
                *("-c", f"pack.compression={int(compress)}"),
                *("fast-import", "--quiet", "--force", "--done", "--date-format=raw", "--depth=0"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment(),
        )
        assert process.stdin is not None
        try:
            with process.stdin as stream:
                _write(stream, ref, parts, message, import_key, cancel)
        except BrokenPipeError:
            pass  # git has ended, and its error is raised below
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait():
            errors.seek(0)
            reason = errors.read().decode(errors="replace").strip().split("\n")[0]
            raise SourceError(f"{repository.path}: git cannot store the import: {reason}")
    made = repository.find(ref)
    if made is None:
        raise SourceError(f"{repository.path}: the import left no {ref}")
    return made[0]


def _write(
    stream: IO[bytes],
    ref: str,
    parts: Iterable[Part],
    message: str,
    import_key: str,
    cancel: CancelToken,
) -> None:
    entries: dict[str, tuple[str, int]] = {}  # path -> (mode, mark)
    time = 0
    mark = 0
    for part in parts:
        prefix, tree = part.prefix, part.tree
        found: dict[str, tuple[str, int]] = {}
        for member in tree.members:
            cancel.check()
            if member.content is None:
                original = found.get(member.same_as)
                if original is None:
                    raise SourceError(
                        f"{member.path} is a hard link to {member.same_as}, which is not there"
                    )
                found[member.path] = original
                continue
            mark += 1
            stream.write(b"blob\nmark :%d\ndata %d\n" % (mark, member.size))
            _copy(member, stream, cancel)
            stream.write(b"\n")
            found[member.path] = (member.mode, mark)
        strip = _single_top(found)
        if part.alone and (other := _taken(prefix, entries)) is not None:
            raise SourceError(
                f"{part.alone} would hide {other}, which is in the tree already:"
                " choose another folder"
            )
        entries |= {prefix + path[len(strip) :]: entry for path, entry in found.items()}
        time = max(time, tree.time)
    text = f"{message}\n\nImport-Key: {import_key}\n".encode()
    stamp = b"%s %d +0000\n" % (_AUTHOR, time)
    stream.write(b"commit %s\nauthor %scommitter %s" % (ref.encode(), stamp, stamp))
    stream.write(b"data %d\n%s\ndeleteall\n" % (len(text), text))
    for path, (mode, number) in sorted(entries.items()):
        stream.write(b"M %s :%d %s\n" % (mode.encode(), number, _quoted(path)))
    stream.write(b"done\n")


def _copy(member: Member, stream: IO[bytes], cancel: CancelToken) -> None:
    assert member.content is not None
    left = member.size
    while left:
        cancel.check()
        piece = member.content.read(min(left, _CHUNK))
        if not piece:
            raise SourceError(f"{member.path} ends early: the archive is damaged")
        stream.write(piece)
        left -= len(piece)


def _single_top(found: Iterable[str]) -> str:
    """ "zlib-1.3/" if everything is in that directory, else ""."""
    tops = {path.partition("/")[0] for path in found}
    if len(tops) == 1 and all("/" in path for path in found):
        return tops.pop() + "/"
    return ""


def _taken(prefix: str, entries: Iterable[str]) -> str | None:
    """A path that is below ``prefix``, or a file where ``prefix`` needs a folder."""
    return next((p for p in entries if p.startswith(prefix) or prefix.startswith(p + "/")), None)


def _quoted(path: str) -> bytes:
    raw = path.encode(errors="surrogateescape")
    for old, new in ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n")):
        raw = raw.replace(old, new)
    return b'"' + raw + b'"'


def from_files(files: Iterable[tuple[str, bytes | Path]]) -> Tree:
    """A tree of plain files with a fixed date."""

    def members() -> Iterator[Member]:
        import io

        for path, content in files:
            with contextlib.ExitStack() as stack:
                if isinstance(content, Path):
                    size = content.stat().st_size
                    opened: IO[bytes] = stack.enter_context(content.open("rb"))
                else:
                    size, opened = len(content), io.BytesIO(content)
                yield Member(path, "100644", size, opened)

    return Tree(members(), [0])
