"""Exports the tree of a commit as plain files, to be mounted or copied.

Files have exactly the bytes of the commit: no attribute, filter or configuration of git changes
them (substitutions of archives, line ends, keywords).  Modes are 0644 and 0755, every time stamp
is `MTIME`, submodules are empty directories, and there is no ``.git``.

Exports are not fsynced, since syncing thousands of small files takes longer than making them again.
An export is trusted only until the machine reboots, and while its table (`fabric.host.tree_tables`)
is unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.errors import SourceError, in_line
from fabric.host.files import clear
from fabric.host.progress import Progress, silent
from fabric.host.shared_files import Tally, scratch, sweep
from fabric.host.tree_tables import (
    Record,
    Table,
    difference,
    read_record,
    table_of,
    write_record,
)
from fabric.trove.sources import git, git_process
from fabric.trove.sources.cat_file import CatFile

#: For a name, whether no build uses the tree of that name; then none can until the end.
Exclusively = Callable[[str], AbstractContextManager[bool]]

_EXPORTING = "exporting-"
#: Time stamp of everything exported (Unix time): one value, so that make rebuilds nothing.
MTIME = 1_000_000_000
_CHUNK = 1024 * 1024


class Exports:
    """Exported trees as ``TOP/<boot>/<tree>``; for any number of processes."""

    def __init__(self, top: Path) -> None:
        self.top = top
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.directory = top / boot
        self._tables = top.with_name("tables")
        self._checked: set[str] = set()  # trees that are as recorded

    def sweep(self) -> None:
        """Remove exports that killed processes left incomplete."""
        sweep(self.top, _EXPORTING)

    def folders(self) -> list[Path]:
        """The folders of complete trees, also those of former boots, which are unused."""
        return [path for path in self.top.glob("*") if not path.name.startswith(_EXPORTING)]

    def find(self, tree: str) -> Path | None:
        """The exported tree, if it is unchanged; it counts as used now."""
        path = self.directory / tree
        try:
            # mtime belongs to the tree; atime records the last use, for gc
            os.utime(path, (time.time(), MTIME))
        except FileNotFoundError:
            return None
        if tree not in self._checked:
            record = read_record(self._tables / tree)
            if record is None:
                return None
            table = table_of(path)
            if not record.table.same(table):
                return None
            if table != record.table:
                self._record(tree, table)
            self._checked.add(tree)
        return path

    def make(
        self,
        repository: git.Repository,
        commit: str,
        tree: str,
        report: Progress = silent,
    ) -> Path:
        """Export the tree of a commit.  DamagedRepositoryError if an object is damaged.

        A tree that exists and has changed is replaced, and ``report`` is called.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / tree
        try:
            with scratch(self.top, _EXPORTING) as folder:
                fresh = folder / tree
                fresh.mkdir(mode=0o700)
                _write(repository, tree, fresh)
                if path.is_dir() and (wrong := difference(fresh, path)):
                    report(f"{path} has changed on the disk, at {wrong!r}: it is exported again")
                    _hide(path)  # a build may have it mounted, so only `gc` removes it
                with contextlib.suppress(FileExistsError):  # another process was faster
                    _rename(fresh, path)
        except OSError as error:
            raise SourceError(
                f"{repository.path}: commit {commit} cannot be exported to {path}: {error.strerror}"
            ) from error
        os.utime(path, (time.time(), MTIME))
        self._record(tree, table_of(path))
        self._checked.add(tree)
        return path

    def _record(self, tree: str, table: Table) -> None:
        """Record a tree's table.  If that fails, the tree is exported again and compared later."""
        with contextlib.suppress(OSError):
            self._tables.mkdir(exist_ok=True)
            fresh = self._tables / f".{tree}-{os.getpid()}-{threading.get_ident()}"
            write_record(self._tables / tree, Record(table), fresh)

    def check(self, exclusively: Exclusively, read: Callable[[], None]) -> Iterator[str]:
        """Read all exported trees, and remove those that do not match their names: yield these.

        A tree with submodules, which does not have their commits, is compared with its record only.
        """
        for path in sorted(self.directory.glob("[!.]*")):
            read()
            tree = git_tree(path)
            if tree == path.name or (tree is None and self.find(path.name)):
                continue
            with exclusively(path.name) as unused:
                if unused:
                    self._checked.discard(path.name)
                    shutil.rmtree(_hide(path))
            yield path.name

    def gc(
        self, older_than: float, exclusively: Exclusively | None = None, *, dry_run: bool = False
    ) -> int:
        """Remove trees unused for so many seconds; return how many bytes that frees.

        ``exclusively`` tells by name whether no build uses a tree.
        """
        tally = Tally()
        guard = exclusively or (lambda _: contextlib.nullcontext(True))
        for path in list(self.top.glob("*/*")):
            with contextlib.suppress(FileNotFoundError):
                used = path.lstat().st_atime
                if used > time.time() - older_than:
                    continue
                with guard(path.name) as unused:
                    if not unused:
                        continue
                    tally.add(path)
                    if dry_run:
                        os.utime(path, (used, MTIME))  # counting bytes is no use of it
                        continue
                    # hidden before it is partly removed
                    aside = path if path.name.startswith(".") else _hide(path)
                shutil.rmtree(aside)
        for boot in self.top.glob("*"):
            if boot != self.directory and not dry_run:
                with contextlib.suppress(OSError):  # not empty yet
                    boot.rmdir()
        for record in self._tables.glob("*"):
            if not (dry_run or (self.directory / record.name).exists()):
                clear(record)
        return tally.bytes


def _rename(fresh: Path, path: Path) -> None:
    try:
        fresh.rename(path)
    except OSError as error:
        if path.is_dir():
            raise FileExistsError from error
        raise


class _Entry(msgspec.Struct, frozen=True):
    mode: str
    sha: str
    path: str


def _hide(path: Path) -> Path:
    """Hide a tree from builds under another name; return its new path."""
    aside = path.with_name(f".old-{path.name}-{os.getpid()}")
    path.rename(aside)
    return aside


def _write(repository: git.Repository, tree: str, target: Path) -> None:
    entries = list(_entries(repository, tree))
    made: set[str] = {""}
    links: list[tuple[str, str]] = []
    with tempfile.TemporaryFile() as wanted:
        blobs = [entry for entry in entries if entry.mode != "160000"]
        wanted.write("".join(entry.sha + "\n" for entry in blobs).encode())
        wanted.seek(0)
        with CatFile(repository.path, "--buffer", requests=wanted) as objects:
            left = bounds.SOURCE_SIZE
            for entry in entries:
                folder = entry.path.rpartition("/")[0]
                if entry.mode == "160000":
                    _make_folders(target, entry.path, made)
                    continue
                _make_folders(target, folder, made)
                content = _Blob(objects, entry, repository, left)
                left -= content.size
                if entry.mode == "120000":
                    links.append((entry.path, os.fsdecode(b"".join(content))))
                else:
                    _write_file(target / entry.path, content, entry.mode == "100755")
    for path, text in links:  # last, so that nothing is written through a link
        link = target / path
        link.symlink_to(text)
        os.utime(link, (MTIME, MTIME), follow_symlinks=False)
    for folder in sorted(made, reverse=True):
        os.utime(target / folder, (MTIME, MTIME))
    target.chmod(0o755)


def _entries(repository: git.Repository, tree: str) -> Iterator[_Entry]:
    for mode, sha, raw in git_process.entries(repository.path, tree):
        path = os.fsdecode(raw)
        parts = path.split("/")
        if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
            raise SourceError(f"{repository.path}: tree {tree} has the forbidden path {path!r}")
        yield _Entry(mode.decode(), sha.decode(), path)


class _Blob:
    """The content of a blob as it git prints it, in pieces, checked."""

    def __init__(
        self, objects: CatFile, entry: _Entry, repository: git.Repository, left: int
    ) -> None:
        self.objects = objects
        self.entry = entry
        self.repository = repository
        try:
            kind, self.size = objects.header()
        except EOFError:  # an object that cannot be read ends git
            kind = b""
        if kind != b"blob":
            raise self._damaged("is missing")
        most = bounds.LINK_TARGET if entry.mode == "120000" else left
        if self.size > most:
            what = f"{in_line(entry.path)}, a link to more" if most < left else "files of more"
            raise SourceError(f"{repository.path}: {what} than {most:,} bytes: no source may")

    def __iter__(self) -> Iterator[bytes]:
        left = self.size
        digest = hashlib.sha1(b"blob %d\0" % left, usedforsecurity=False)
        for piece in self.objects.pieces(self.size):
            digest.update(piece)
            left -= len(piece)
            yield piece
        if left:
            raise self._damaged("cannot be read")
        if digest.hexdigest() != self.entry.sha:
            raise self._damaged("is damaged")

    def _damaged(self, how: str) -> SourceError:
        return git_process.DamagedRepositoryError(
            self.repository.path, f"object {self.entry.sha} ({in_line(self.entry.path)}) {how}"
        )


def _write_file(path: Path, content: _Blob, executable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(path, flags, 0o600)
    try:
        for piece in content:
            _write_all(handle, piece)
        os.fchmod(handle, 0o755 if executable else 0o644)
        os.utime(handle, (MTIME, MTIME))
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _make_folders(target: Path, folder: str, made: set[str]) -> None:
    """Make a directory and its parents, each once; FileExistsError if one exists already."""
    if folder not in made:
        _make_folders(target, folder.rpartition("/")[0], made)
        path = target / folder
        path.mkdir(mode=0o755)
        path.chmod(0o755)  # independent of the umask
        made.add(folder)


def git_tree(path: Path) -> str | None:
    """The id of a directory as a git tree; None if it contains an empty directory: a submodule."""
    rows = []
    for entry in list(os.scandir(path)):
        mode = entry.stat(follow_symlinks=False).st_mode
        if entry.is_dir(follow_symlinks=False):
            inside = git_tree(Path(entry.path))
            if inside is None:
                return None
            rows.append((os.fsencode(entry.name) + b"/", b"40000", inside))
        elif entry.is_symlink():
            target = os.fsencode(os.readlink(entry.path))  # noqa: PTH115
            rows.append((os.fsencode(entry.name), b"120000", _git_id(b"blob", target)))
        else:
            kind = b"100755" if mode & 0o100 else b"100644"
            rows.append((os.fsencode(entry.name), kind, _git_file(entry.path)))
    if not rows:
        return None
    content = b"".join(
        b"%s %s\0%s" % (kind, name.removesuffix(b"/"), bytes.fromhex(id))
        for name, kind, id in sorted(rows)
    )
    return _git_id(b"tree", content)


def _git_id(kind: bytes, content: bytes) -> str:
    head = b"%s %d\0" % (kind, len(content))
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def _git_file(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
