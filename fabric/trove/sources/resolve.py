"""Resolves a repository and a ref of the definitions to a tree of files.

Everything is below one directory, which any number of processes share::

    git/ALIAS/NAME.git     repositories that lorries import or people push to
    git/mirrors/...        mirrors of other repositories
    trees/...              exported trees (`fabric.trove.sources.export`)
    downloads/<sha256>     downloads of lorries
    apt/, locks/

A ref is a commit, a tag or a branch.  Commits and tags never change; a branch of another machine's
repository is looked up again, once in the life of a `Sources`.  In the definitions' own repository,
HEAD is their commit.

With a farm's trove (`fabric.trove.sources.farm_refs`), missing sources are first looked for there.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.definitions.graph import Submodule
from fabric.errors import SourceError, SourcesError, command, without_secrets
from fabric.host.cancel import CancelToken
from fabric.host.locks import locked
from fabric.host.progress import Progress, silent
from fabric.jobs import Source
from fabric.trove.sources import farm_refs as shared
from fabric.trove.sources import housekeeping
from fabric.trove.sources.git import SHA, Repository
from fabric.trove.sources.git_process import DamagedRepositoryError
from fabric.trove.sources.repositories import OpenImporter, Repositories

if TYPE_CHECKING:
    from fabric.trove.sources.aliases import Location
    from fabric.trove.sources.changes import Change
    from fabric.trove.sources.export import Exclusively, Exports
    from fabric.trove.sources.farm_remote import Trove
    from fabric.trove.sources.lorries import Lorries

Wanted = tuple[str, str, Sequence[Submodule]]

#: Seconds between two counts of the sources that have come.
_LOOK_EVERY = 0.5
#: Imports and fetches in parallel: they mostly wait for the network.
PARALLEL = 2


class Sources:
    """The trove's sources below ``root``.

    ``aliases`` maps alias -> pattern (see `fabric.trove.sources.aliases`), ``lorries`` is the
    definitions' ``sources/`` directory.  ``progress`` is called from any thread.

    ``trove`` is the farm's.  ``importer`` imports lorries; without it, pinned sources come from
    the trove only.  ``head`` is the definitions' commit, unless they are in a work tree.
    """

    def __init__(
        self,
        root: Path,
        aliases: Mapping[str, str],
        lorries: Path | None = None,
        *,
        trove: Trove | None = None,
        importer: OpenImporter | None = None,
        head: str = "",
        progress: Progress = silent,
    ) -> None:
        def shown(text: str) -> None:
            progress(without_secrets(text))

        self.root = root
        self.progress = shown
        self._trove = trove
        self._repositories = Repositories(
            root,
            aliases,
            lorries,
            trove,
            importer=importer,
            head=head,
            progress=shown,
        )

    @property
    def lorries(self) -> Lorries:
        """The definitions' lorries.  DefinitionsError if one of them is wrong."""
        return self._repositories.lorries

    @cached_property
    def exports(self) -> Exports:
        """The exported trees."""
        from fabric.trove.sources.export import Exports

        return Exports(self.root / "trees")

    # -- from names to commits ---------------------------------------------------------------

    def resolve(self, repo: str, ref: str, submodules: Sequence[Submodule] = ()) -> Source:
        """The commit and tree of ``ref`` of ``repo``, imported or fetched if missing.

        ``submodules`` are URLs of the definitions that replace those of .gitmodules.  SourceError,
        with advice, if it cannot be found.
        """
        return self._source(repo, ref, self._repositories.commit(repo, ref), submodules)

    def _source(self, repo: str, ref: str, commit: str, submodules: Sequence[Submodule]) -> Source:
        """The source of a commit of the trove, with all its submodules."""
        fact = self.repository(repo).fact(commit)
        urls = {submodule.path: submodule for submodule in submodules}
        for path in urls.keys() - {path for path, _, _ in fact.submodules}:
            raise SourceError(
                f"{repo} has no submodule {path} at {ref}, though the definitions give its URL"
            )
        inside = []
        for path, sha, url in fact.submodules:
            given = urls.get(path)
            target = given.url if given else url
            if not target:
                self.progress(f"{repo}: .gitmodules does not say where {path} is from: left empty")
                continue
            target = self._repositories.aliases.relative(repo, target)
            below = given.submodules if given else ()
            inside.append((path, self.resolve(target, sha, below)))
        return Source(repo, ref, commit, fact.tree, tuple(inside))

    def at_hand(self, repo: str, ref: str) -> str | None:
        """The commit of a ref, if this machine has it, and nothing needs to be fetched."""
        return self._repositories.at_hand(repo, ref)

    def obtain(self, repo: str, ref: str) -> str:
        """The commit of a ref, fetched or imported if missing.  SourceError."""
        return self._repositories.commit(repo, ref)

    def locate(self, repo: str) -> Location:
        """The place of a repository.  SourceError if it is no name of one."""
        return self._repositories.aliases.locate(repo)

    def resolve_edit(self, replaced: Wanted, repo: str, commit: str) -> Source:
        """The source that is a commit of ``repo``, in place of ``replaced``: of that it has the
        submodules.  SourceError if it cannot be found.
        """
        fact = self.repository(repo).fact(self._repositories.commit(repo, commit))
        inside = self.resolve(*replaced).submodules if fact.submodules else ()
        return Source(repo, commit, commit, fact.tree, inside)

    def resolve_all(self, wanted: Iterable[Wanted]) -> list[Source]:
        """Resolve many (repo, ref, submodules) in parallel.  SourcesError names all that failed."""
        asked = list(wanted)
        unique = {_identity(one): one for one in asked}
        absent: deque[tuple[object, Wanted]] = deque()
        done: dict[object, Source] = {}
        for identity, one in unique.items():
            repo, ref, submodules = one
            commit = self._repositories.at_hand(repo, ref)
            if commit:
                done[identity] = self._source(repo, ref, commit, submodules)
            else:
                absent.append((identity, one))
        done |= self._resolve_in_threads(absent)
        return [done[_identity(one)] for one in asked]

    def _resolve_in_threads(self, absent: deque[tuple[object, Wanted]]) -> dict[object, Source]:
        """Resolve sources that must be imported or fetched, PARALLEL at a time."""
        done: dict[object, Source] = {}
        failures: list[tuple[Wanted, Exception]] = []
        total = len(absent)

        def work() -> None:
            while True:
                try:
                    identity, one = absent.popleft()
                except IndexError:
                    return
                try:
                    done[identity] = self.resolve(*one)
                except Exception as error:  # noqa: BLE001 - raised again below
                    failures.append((one, error))

        # No executor, since Python waits for its threads at exit, however long they hang.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(absent)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    if total > 1:
                        self.progress(f"sources: {len(done) + len(failures)} of {total}")
                    thread.join(_LOOK_EVERY)  # without end, it could miss a signal
        except BaseException:  # such as Ctrl-C: running imports are cancelled
            absent.clear()
            self._repositories.cancel.set()
            for thread in threads:
                thread.join(1.0)
            self._repositories.cancel = CancelToken()
            raise
        told = []
        for (repo, ref, _), failure in failures:
            if not isinstance(failure, SourceError):
                raise failure
            told.append(((repo, ref), failure))
        if told:
            raise SourcesError(told)
        return done

    # -- lorries -----------------------------------------------------------------------------

    def run_lorry(self, name: str) -> tuple[Source, list[str]]:
        """Import what a lorry pins, unless it is in the trove; for type git, fetch again.

        Return the source, and the changes to the lorry's files, a line each: the tree, if none was
        recorded.  SourceError if it cannot be found, or has another tree than recorded.
        """
        lorry = self.lorries.named(name)
        changes: list[str] = []
        if lorry.type == "git":
            ref = self._repositories.refetch(lorry).newest_ref()
            return self.resolve(lorry.repo, ref), changes
        if lorry.missing:
            raise lorry.incomplete()
        if not lorry.recorded_tree or self._repositories.at_hand(lorry.repo, lorry.ref) is None:
            tree = self._repositories.import_lorry(lorry)
            if not lorry.recorded_tree:
                from fabric.trove.sources import pins

                changes = pins.record(lorry, tree)
                self._repositories.reread()
        return self.resolve(lorry.repo, lorry.ref), changes

    def update_lorry(self, name: str, *, dry_run: bool = False) -> list[str]:
        """Renew a lorry's pins in its files; return the changes, a line each.

        A ``dry_run`` tells of changes, without the tree, and makes none.
        """
        repositories = self._repositories
        changes = repositories.importer().update(
            self.lorries.named(name), None if dry_run else repositories.import_lorry
        )
        self._repositories.reread()
        return changes

    def save_patches(self, name: str, paths: Sequence[str], tree: str = "") -> list[str]:
        """Give a lorry these patches, and record the tree; return the changes, a line each.

        ``paths`` are relative to the folder of the lorry's file.  SourceError, and nothing is
        written, if one does not apply, or they give another tree than ``tree``.
        """
        from fabric.trove.sources import pins

        lorry = self.lorries.named(name)
        if lorry.type == "git" or lorry.is_set:
            raise SourceError(
                f"{lorry.where}: {name} is of type {lorry.type}, which has no patches"
            )
        patched = lorry.with_patches(paths).with_tree(tree)
        patched = patched.with_tree(self._repositories.import_lorry(patched))
        pins.write(lorry, patched)
        self._repositories.reread()
        return pins.describe(lorry, patched)

    def unpinned(self, wanted: Iterable[Wanted]) -> list[str]:
        """The sources whose content the definitions do not pin, each with the reason.

        Pinned are commits, lorries that record their tree, and HEAD of the definitions' own
        repository.  Submodules are commits.
        """
        return [
            f"{repo} {ref} ({why})"
            for repo, ref in dict.fromkeys((repo, ref) for repo, ref, _ in wanted)
            if (why := self._unpinned(repo, ref))
        ]

    def require_pins(self, wanted: Iterable[Wanted]) -> None:
        """SourceError if one of the sources is `unpinned`."""
        if unpinned := self.unpinned(wanted):
            listed = "\n".join(f"  {one}" for one in unpinned)
            raise SourceError(
                f"--locked: the definitions do not pin what these sources contain:\n{listed}\n"
                f"A commit (40 hex digits) as `ref` pins it; `{command('lorry', 'import', 'NAME')}`"
                " records the tree of a lorry."
            )

    def _unpinned(self, repo: str, ref: str) -> str:
        lorry = self.lorries.get(repo)
        if SHA.fullmatch(ref) or (lorry is not None and lorry.is_own and ref == "HEAD"):
            return ""
        if lorry is not None and lorry.brings(ref):
            return "" if lorry.recorded_tree else f"{lorry.where} records no tree"
        return "a name, which can be moved"

    # -- from commits to files ---------------------------------------------------------------

    def export(self, source: Source, report: Progress = silent) -> Path:
        """A read-only directory with the files of ``source``; submodules are empty.

        If it has changed on the disk, it is made again, and ``report`` is called.  SourceError if
        its commit is neither in the trove nor at its origin.
        """
        found = self.exports.find(source.tree)
        if found is not None:
            return found
        repository = self._repositories.holding(source)
        with locked(self.root / "locks" / source.tree, remove=True):
            found = self.exports.find(source.tree)
            if found is None:
                tree = repository.fact(source.commit).tree
                if tree != source.tree:
                    raise SourceError(
                        f"{source.repo}: commit {source.commit} has the tree {tree}, and not"
                        f" {source.tree}, as the job claims"
                    )
                self.progress(f"{source.repo}: exporting {source.ref}")
                try:
                    found = self.exports.make(repository, source.commit, source.tree, report)
                except DamagedRepositoryError as error:
                    repository = self._repositories.mended(source, error)
                    found = self.exports.make(repository, source.commit, source.tree, report)
        return found

    def changes(self, source: Source, since: str) -> Iterator[Change]:
        """The differences of a source's tree from the tree ``since``; submodules are entries.

        SourceError if one of the trees cannot be read.
        """
        from fabric.trove.sources.changes import changes

        return changes(self._repositories.holding(source), since, source.tree)

    def files(
        self, source: Source, choose: Callable[[str], bool]
    ) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Path, size in bytes and content of the files of a source that ``choose`` takes.

        Each content is read before the next one, or skipped.  Links are left out.  SourceError if
        the tree cannot be read.
        """
        from fabric.trove.sources.cat_file import CatFile
        from fabric.trove.sources.git_process import entries

        repository = self._repositories.holding(source).path
        chosen = [
            (path, object)
            for mode, object, raw in entries(repository, source.tree)
            if mode.startswith(b"100") and choose(path := os.fsdecode(raw))
        ]
        with CatFile(repository) as git:
            for path, object in chosen:
                git.request(object)
                kind, size = git.header()
                if kind != b"blob":
                    why = f"{path} of {source.tree} cannot be read"
                    raise DamagedRepositoryError(repository, why)
                pieces = git.pieces(size)
                yield path, size, pieces
                deque(pieces, maxlen=0)

    # -- the farm's trove --------------------------------------------------------------------

    def push_missing(self, wanted: Iterable[Wanted]) -> None:
        """Push sources that the farm's trove lacks: resolve them, then `publish` them.

        Nothing without a trove.  A branch that its lorry mirrors is looked up again.
        """
        if self._trove is None:
            return
        there = self._trove.refs("refs/pins/*", "refs/tags/*", "refs/heads/*")
        lacking = [one for one in wanted if self._lacks(there, one)]
        if lacking:
            self.publish(self.resolve_all(lacking))

    def _lacks(self, there: Mapping[str, str], wanted: Wanted) -> bool:
        repo, ref, _ = wanted
        location = self._repositories.aliases.locate(repo)
        lorry = self.lorries.get(repo)
        if not location.name or (lorry is not None and lorry.is_own and ref == "HEAD"):
            return False
        if lorry is not None and lorry.brings(ref):
            return f"refs/pins/{location.name}/{lorry.import_key()}" not in there
        if SHA.fullmatch(ref):
            return f"refs/pins/{location.name}/{ref}" not in there
        names = (
            [f"refs/tags/{ref}"] if lorry is not None else [f"refs/tags/{ref}", f"refs/heads/{ref}"]
        )
        return not any(shared.inside(location.name, name) in there for name in names)

    def publish(self, sources: Iterable[Source]) -> None:
        """Push resolved sources that the farm's trove lacks, also submodules.

        Nothing without a trove.  Left out are sources that other machines fetch from their own URL,
        and the definitions' own repository, which is pushed as the submitted commit.
        """
        if self._trove is None:
            return
        kept = {one.refs()[0]: one for source in sources for one in self._kept(source)}
        shared.push(self._trove, list(kept.values()), self.progress, self._repositories.cancel)

    def _kept(self, source: Source) -> Iterator[shared.Kept]:
        location = self._repositories.aliases.locate(source.repo)
        lorry = self.lorries.get(source.repo)
        if location.name and not (lorry is not None and lorry.is_own and source.ref == "HEAD"):
            repository = self._repositories.repository(location)
            pin = ""
            if lorry is not None and lorry.brings(source.ref):
                pin = lorry.import_key()
            found = repository.find(source.ref)
            ref = found[1] if found and found[0] == source.commit else ""
            yield shared.Kept(repository, location.name, source.commit, pin, ref)
        for _, module in source.submodules:
            yield from self._kept(module)

    # -- housekeeping ------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove exports that killed processes left incomplete."""
        self.exports.sweep()

    def gc(
        self, older_than: float, exclusively: Exclusively | None = None, *, dry_run: bool = False
    ) -> dict[str, int]:
        """Remove what was unused for so many seconds; return how many bytes that frees, by kind.

        Trees that builds use stay, as ``exclusively`` tells.  Of repositories, only leftovers of
        killed fetches are removed, since their commits may exist nowhere else.
        """
        return {
            "source trees": self.exports.gc(older_than, exclusively, dry_run=dry_run),
            "downloads": self._repositories.importer().gc(older_than, dry_run=dry_run),
            "repositories": housekeeping.gc(self.root, dry_run=dry_run),
        }

    def repository(self, repo: str) -> Repository:
        """The repository of ``repo`` in the trove; it need not exist."""
        return self._repositories.repository(self._repositories.aliases.locate(repo))


def _identity(wanted: Wanted) -> object:
    repo, ref, submodules = wanted
    return repo, ref, tuple(submodules)
