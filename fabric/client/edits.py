"""Keeps which chunks a user edits: each has a work tree, from which builds take its source.

The record of a folder of definitions is in the state directory.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric.client.memory import memory
from fabric.config import Settings
from fabric.errors import FabricError, SourceError, command
from fabric.host.cancel import TICK
from fabric.host.files import recall, remember
from fabric.host.locks import locked
from fabric.jobs import Source
from fabric.trove.sources.git import Repository

if TYPE_CHECKING:
    from fabric.trove.sources.snapshot import Snapshot


class Edit(msgspec.Struct, frozen=True):
    """A chunk that is edited."""

    chunk: str
    id: str
    folder: str  # the work tree
    made: bool  # the folder was made for the edit
    source: Source  # as the definitions have it
    parent: str  # of its snapshots: a commit of the work tree's repository, or ""

    @property
    def repo(self) -> str:
        """Its repository in the trove, with the snapshots of the work tree."""
        return f"edits/{self.id}"

    @property
    def shown(self) -> str:
        """The folder, relative to the current one if that is shorter."""
        return min(self.folder, os.path.relpath(self.folder), key=len)


class _Taking:
    """A snapshot that a thread takes."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._taken: Snapshot | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="snapshot", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._taken = self._take()
        except BaseException as error:  # noqa: BLE001 - raised again in `result`
            self._taken = error

    def result(self) -> Snapshot:
        """The snapshot, once it is taken; raises what taking it raised."""
        while self._thread.is_alive():
            self._thread.join(TICK)  # without end, it could miss a signal
        assert self._taken is not None
        if isinstance(self._taken, BaseException):
            raise self._taken
        return self._taken


class Edits:
    """The edits of the definitions in ``root``."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self.root = root
        self._trove = settings.trove_dir
        self._work = settings.work_dir
        self._file = memory(settings, "edits", root)
        self._begun: dict[str, _Taking] = {}  # chunk -> its snapshot that is being taken
        self.by_name = self._read()

    def _read(self) -> dict[str, Edit]:
        data = recall(self._file)
        try:
            edits = msgspec.json.decode(data, type=list[Edit]) if data else []
        except msgspec.MsgspecError as error:
            raise FabricError(
                f"{self._file}: the record of edits cannot be read ({error}); remove it to go on"
                " without edits: their folders stay"
            ) from None
        return {edit.chunk: edit for edit in edits}

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Around a change of the record, which other processes may change as well."""
        with locked(self._file.with_suffix(".lock")):
            self.by_name = self._read()
            yield
            remember(self._file, msgspec.json.encode(list(self.by_name.values())))

    def add(self, edit: Edit) -> None:
        """Begin an edit, or replace its record."""
        with self._changed():
            self.by_name[edit.chunk] = edit

    def remove(self, edit: Edit, *, folder: bool) -> None:
        """End an edit; with ``folder`` its work tree is removed."""
        with self._changed():
            self.by_name.pop(edit.chunk, None)
        shutil.rmtree(self._work / "edits" / edit.id, ignore_errors=True)
        repository = self.repository(edit)
        if repository.path.exists():
            repository.remove()
        if folder:
            shutil.rmtree(edit.folder)

    def repository(self, edit: Edit) -> Repository:
        """The repository with the snapshots of an edit."""
        return Repository(self._trove / "git" / f"{edit.repo}.git")

    def sources(self, names: Iterable[str], kept: Iterable[str]) -> dict[str, Source]:
        """Name -> the present source of those chunks, if they are edited.

        Those in ``kept`` are built in trees that are kept.  SourceError if a work tree cannot be
        read.
        """
        edits = {name: self.by_name[name] for name in names if name in self.by_name}
        return {name: self._source(edit, name in kept) for name, edit in edits.items()}

    def snapshots(self, names: Iterable[str] = ()) -> dict[str, Snapshot]:
        """Name -> a snapshot of the work tree of each edited chunk, or of those chunks."""
        return {name: self._taken(self.by_name[name]) for name in names or self.by_name}

    def begin(self, names: Iterable[str]) -> None:
        """Begin to take the snapshots of those chunks, if they are edited, or of all edits.

        `sources` and `snapshots` wait for them once, and raise their errors.
        """
        for edit in [self.by_name[n] for n in names or self.by_name if n in self.by_name]:
            self._begun[edit.chunk] = _Taking(partial(self._take, edit))

    def _taken(self, edit: Edit) -> Snapshot:
        begun = self._begun.pop(edit.chunk, None)
        return self._take(edit) if begun is None else begun.result()

    def _take(self, edit: Edit) -> Snapshot:
        from fabric.trove.sources.work_trees import take

        folder = Path(edit.folder)
        if not folder.is_dir():
            raise SourceError(
                f"{edit.chunk} is edited in {folder}, which is not there: move it back, or run:"
                f" {command('edit', '--close', edit.chunk)}"
            )
        plain = not edit.source.submodules
        return take(folder, self.repository(edit), edit.parent, plain=plain)

    def _source(self, edit: Edit, kept: bool) -> Source:
        taken = self._taken(edit)
        modules = edit.source.submodules
        if modules:
            fact = self.repository(edit).fact(taken.commit)
            now = {path: commit for path, commit, _ in fact.submodules}
            if now != {path: one.commit for path, one in modules}:
                raise SourceError(
                    f"{edit.chunk}: the submodules in {edit.folder} are at other commits than in"
                    " the definitions, and only files of the work tree itself can be edited:"
                    f" restore them with `git -C {edit.folder} submodule update`"
                )
        id = edit.id if kept else ""
        return Source(edit.repo, taken.commit, taken.commit, taken.tree, modules, id)
