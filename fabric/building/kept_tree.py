"""Keeps the build tree of an edited chunk, so that a build compiles only what has changed.

::

    edits/ID/tree     the build tree, as the last build left it
    edits/ID/record   the record of its contents (`_Record`)

A build takes the tree by renaming it into its scratch, and puts it back at its end.  So no two
builds have it, and a build that is killed leaves none: files may be half written then.

Files that differ between the source of the last build and that of this one are written, with the
present time, which is later than that of everything that was made of their former contents.  The
configure lists run again if one of these files is an input of them.  A clean tree takes the place
of one whose dependencies, environment or mode differ, or in which a build has changed a source.
"""

# ruff: noqa: PTH123
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.building import sourcetree
from fabric.building.build_script import phase_of
from fabric.building.workspace import Workspace
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.files import read_regular
from fabric.host.progress import Progress
from fabric.jobs import Job
from fabric.trove.sources.changes import ABSENT, LINK, MODULE, PROGRAM, Change
from fabric.trove.sources.export import MTIME

#: The phase whose lists run only if their inputs have changed.
CONFIGURE = "configure"
#: Names of files that these lists usually read.
_INPUTS = re.compile(
    r"configure|configure\..*|.*\.(?:ac|am|in|m4|cmake)|CMakeLists\.txt|CMakePresets\.json"
    r"|meson\.build|meson\.options|meson_options\.txt|autogen\.sh|bootstrap|buildconf"
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: The mtime (ns) of files of a clean tree.
_CLEAN = MTIME * 1_000_000_000

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class _Record(msgspec.Struct):
    """The contents of a kept tree."""

    source: str  # the source's git tree
    base: str  # digest of all that makes the tree useless when it differs
    configured: str = ""  # digest of the configure lists that have run in it; "": none
    times: dict[str, int] = {}  # mtime (ns) of files written since the tree was clean


class _Unusable(Exception):
    """A kept tree cannot be used for a source."""


class KeptTree:
    """The build tree of an edited chunk, in the scratch of one build."""

    def __init__(self, job: Job, workspace: Workspace, scratch: Path) -> None:
        assert job.source is not None
        self._job = job
        self._source = job.source
        self._workspace = workspace
        self._kept = workspace.root / "edits" / job.source.edit
        self._folder = scratch / "kept"
        self._record = _Record(job.source.tree, _base(job))
        self.again = False  # an earlier build has left the tree
        self.whole = False  # commands have run, and none was killed while it wrote a file

    @property
    def path(self) -> Path:
        """The tree."""
        return self._folder / "tree"

    @property
    def is_configured(self) -> bool:
        """Whether the configure lists need not run."""
        return self._record.configured == _configure(self._job)

    def take(self, cancel: CancelToken, report: Progress) -> None:
        """Take the tree into the scratch, and make it the source's; ``report`` tells how."""
        with suppress(FileNotFoundError):
            self._kept.rename(self._folder)
        try:
            count = self._update()
        except (_Unusable, OSError, SourceError, msgspec.MsgspecError) as error:
            if str(error):
                report(f"edited: a clean tree, because {error}")
            self._workspace.session.discard(self._folder)
            self._folder.mkdir()
            self._record = _Record(self._source.tree, _base(self._job))
            self.path.mkdir(mode=0o755)
            exported = sourcetree.exported(self._source, self._workspace, cancel, report)
            sourcetree.copy(exported, self.path, cancel)
        else:
            self.again = True
            how = "" if self.is_configured else ", and configures again"
            report(f"edited: goes on in the tree of the last build: {count} files changed{how}")

    def _update(self) -> int:
        """Make the tree that of the source; returns the number of changed files.

        _Unusable, without a text if there is no tree.
        """
        path = self._folder / "record"
        try:
            data = read_regular(path, bounds.MEMORY, follow=False)
        except FileNotFoundError:
            raise _Unusable from None
        path.unlink()  # until the tree is as recorded again
        record = msgspec.msgpack.decode(data, type=_Record)
        if record.base != self._record.base:
            raise _Unusable("its dependencies or its environment changed")
        changed: list[Change] = []
        if record.source != self._source.tree:
            changed = list(self._workspace.sources.changes(self._source, record.source))
            top = os.open(self.path, _FOLDER)
            try:
                for change in changed:
                    _put(top, change, record.times)
            finally:
                os.close(top)
            if any(_is_input(change, self._job) for change in changed):
                record.configured = ""
            record.source = self._source.tree
        self._record = record
        return len(changed)

    def configured(self) -> None:
        """The configure lists have run."""
        self._record.configured = _configure(self._job)

    def forget(self) -> None:
        """Discard the tree: the next `take` makes a clean one."""
        self._workspace.session.discard(self._folder)

    def put_back(self) -> None:
        """Keep the tree for the next build."""
        (self._folder / "record").write_bytes(msgspec.msgpack.encode(self._record))
        self._workspace.session.discard(self._kept)  # another build of the same edit was faster
        self._folder.rename(self._kept)
        os.utime(self._kept)


def _base(job: Job) -> str:
    assert job.source is not None
    parts = [job.source_name, job.arch, job.mode, job.prefix, job.host_tools, job.environment]
    staged = [one.key for one in job.staged]
    modules = [(path, one.tree) for path, one in job.source.submodules]
    return sha256(_encode([*parts, staged, modules])).hexdigest()


def _lists(job: Job) -> Iterator[tuple[str, ...]]:
    """The commands of the configure lists."""
    return (commands for name, commands in job.commands if phase_of(name) == CONFIGURE)


def _configure(job: Job) -> str:
    return sha256(_encode(list(_lists(job)))).hexdigest()


def _is_input(change: Change, job: Job) -> bool:
    """Whether the configure lists may do something else after a change.

    They may list files, so a file more or less counts; and so does one that they name.
    """
    if ABSENT in (change.before, change.after):
        return True
    name = change.path.rpartition("/")[2]
    named = any(name in command for commands in _lists(job) for command in commands)
    return named or _INPUTS.fullmatch(name) is not None


def _put(top: int, change: Change, times: dict[str, int]) -> None:
    """Write a changed file below the directory ``top``.  _Unusable if a build changed it, too."""
    if MODULE in (change.before, change.after):
        raise _Unusable(f"the submodule {change.path} changed")
    *folders, name = change.path.split("/")
    here = os.dup(top)
    try:
        for folder in folders:
            with suppress(FileExistsError):
                os.mkdir(folder, 0o755, dir_fd=here)
            inner = os.open(folder, _FOLDER, dir_fd=here)  # no build can lead us elsewhere by links
            os.close(here)
            here = inner
        _remove(here, name, change, times)
        if change.after != ABSENT:
            times[change.path] = _write(here, name, change)
    except OSError as error:
        raise _Unusable(f"{change.path}: {error.strerror}") from None
    finally:
        os.close(here)


def _remove(here: int, name: str, change: Change, times: dict[str, int]) -> None:
    """Remove the former file; _Unusable unless it is as it was put there."""
    put = times.pop(change.path, _CLEAN)
    try:
        info = os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        info = None
    before = None if change.before == ABSENT else put
    if (None if info is None else info.st_mtime_ns) != before:
        raise _Unusable(f"{change.path} changed here and in a build")
    if info is not None:
        os.unlink(name, dir_fd=here)


def _write(here: int, name: str, change: Change) -> int:
    """Write a file; returns its mtime in ns."""
    if change.after == LINK:
        os.symlink(os.fsdecode(change.content), name, dir_fd=here)
    else:
        with open(os.open(name, _NEW, 0o600, dir_fd=here), "wb") as file:
            file.write(change.content)
            os.fchmod(file.fileno(), 0o755 if change.after == PROGRAM else 0o644)
    return os.stat(name, dir_fd=here, follow_symlinks=False).st_mtime_ns
