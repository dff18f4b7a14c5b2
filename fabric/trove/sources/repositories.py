"""Locates sources, and fetches or imports missing ones, for `fabric.trove.sources.resolve`.

An import, a fetch and a removal of a repository happen under its lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fabric.errors import SourceError, command, suggest
from fabric.host.cancel import CancelToken
from fabric.host.locks import locked
from fabric.host.progress import Progress
from fabric.jobs import Source
from fabric.trove.sources import absent
from fabric.trove.sources import farm_refs as shared
from fabric.trove.sources.aliases import Aliases, Location, local_path
from fabric.trove.sources.git import REF, SHA, Repository
from fabric.trove.sources.git_process import DamagedRepositoryError, run

if TYPE_CHECKING:
    from fabric.trove.sources.farm_remote import Trove
    from fabric.trove.sources.lorries import Lorries, Lorry


class Importer(Protocol):
    """Imports what lorries pin (of any type but git)."""

    def run(self, lorry: Lorry, repository: Repository) -> str:
        """Import what a lorry pins, while its repository is locked.  Return the commit.

        SourceError if it cannot be had.
        """

    def update(self, lorry: Lorry, run: Callable[[Lorry], str] | None) -> list[str]:
        """Renew a lorry's pins.  Return what changed, a line each.

        ``run`` imports what a lorry pins, and returns the tree.  Without it, nothing is changed.
        """

    def gc(self, older_than: float, *, dry_run: bool) -> int:
        """Remove downloads older than so many seconds.  Return how many bytes that frees."""


#: Makes an importer for a trove's root.
OpenImporter = Callable[[Path, Progress, CancelToken], Importer]


class Repositories:
    """The repositories below ``root``; the arguments are those of `Sources`."""

    def __init__(
        self,
        root: Path,
        aliases: Mapping[str, str],
        lorries: Path | None,
        trove: Trove | None,
        *,
        importer: OpenImporter | None,
        head: str,
        progress: Progress,
    ) -> None:
        self.root = root
        self.aliases = Aliases(root, aliases)
        self.progress = progress
        self.cancel = CancelToken()
        self._directory = lorries
        self._trove = trove
        self._open_importer = importer
        self._head = head
        self._repositories: dict[Path, Repository] = {}
        self._fetched: set[tuple[Path, str]] = set()  # with a branch, or "" for all branches

    @cached_property
    def lorries(self) -> Lorries:
        """The definitions' lorries.  DefinitionsError if one of them is wrong."""
        from fabric.trove.sources.lorries import Lorries  # loads yaml, which a worker does not need

        return Lorries(self._directory)

    @property
    def _imports(self) -> bool:
        """Whether sources are imported or fetched by their lorries."""
        return self._open_importer is not None

    def importer(self) -> Importer:
        """A new importer of lorries."""
        assert self._open_importer is not None
        return self._open_importer(self.root, self.progress, self.cancel)

    def reread(self) -> None:
        """Forget the lorries, since their files have changed."""
        self.__dict__.pop("lorries", None)

    def commit(self, repo: str, ref: str) -> str:
        """The commit of a ref, fetched or imported if it is missing.  SourceError."""
        location = self.aliases.locate(repo)
        meant = self._meant(repo, ref)
        try:
            found = self._known(repo, meant, location) or self._obtain(repo, meant, location)
            self.repository(location).fact(found)
        except DamagedRepositoryError as error:
            self._remove(location, self.lorries.get(repo), error)
            return self._known(repo, meant, location) or self._obtain(repo, meant, location)
        return found

    def _remove(
        self, location: Location, lorry: Lorry | None, error: DamagedRepositoryError
    ) -> None:
        """Remove a damaged repository, if its contents can be fetched or imported again."""
        if location.url is None and lorry is None and self._trove is None:
            raise SourceError(f"{error}; it has no other origin, so repair it, or {location.hint}")
        with self._locked(location):
            repository = self.repository(location)
            try:
                repository.examine()  # another process may have repaired it
            except DamagedRepositoryError:
                self.progress(f"warning: {error}: removing it, and fetching its source again")
                repository.remove()

    def at_hand(self, repo: str, ref: str) -> str | None:
        """The commit of a ref, if it needs no fetching."""
        try:
            location = self.aliases.locate(repo)
            found = self._known(repo, self._meant(repo, ref), location)
            if found:
                self.repository(location).fact(found)
        except SourceError:
            return None  # reported when it is resolved
        return found

    def _meant(self, repo: str, ref: str) -> str:
        """The ref itself, or the commit of HEAD of the definitions' own repository."""
        lorry = self.lorries.get(repo) if ref == "HEAD" else None
        if lorry is None or not lorry.is_own:
            return ref
        if self._head:
            return self._head
        # a bare repository there would be made of files of the definitions, also its settings
        asked = ["-C", lorry.url, "-c", "safe.bareRepository=explicit", "rev-parse", "HEAD"]
        try:  # with the user's configuration, which may call the repository safe
            return (run(asked, private=False) or b"").decode().strip()
        except SourceError as error:
            raise SourceError(
                f"{lorry.where}: {lorry.url} is no git repository with a commit, so there is no"
                f" HEAD for {repo}: commit the definitions ({error})"
            ) from None

    def _known(self, repo: str, ref: str, location: Location) -> str | None:
        """The commit of ``ref``, if it is in the trove and up to date."""
        repository = self.repository(location)
        lorry = self.lorries.get(repo)
        if lorry is not None and lorry.brings(ref):
            commit = self._imported(repository, lorry)
            tree = lorry.recorded_tree
            right = not tree or (commit and repository.fact(commit).tree == tree)
            return commit if right else None
        found = repository.find(ref)
        if found is None:
            return None
        commit, name = found
        if name.startswith("refs/heads/") and not self._is_current(
            repository, name, location, lorry
        ):
            return None
        return commit

    def _imported(self, repository: Repository, lorry: Lorry) -> str | None:
        """The commit with the import key of a lorry, whatever its tree."""
        commit = repository.commit_at(lorry.full_ref)
        if commit is None or repository.fact(commit).import_key != lorry.import_key():
            return None
        return commit

    def _is_current(
        self, repository: Repository, name: str, location: Location, lorry: Lorry | None
    ) -> bool:
        """Whether a branch has the same commit as at its origin."""
        if {(repository.path, ""), (repository.path, name)} & self._fetched:
            return True
        url = self._origin(location, lorry)
        if url is None:
            return True
        there = name
        if self._trove is not None and url == self._trove.url:
            there = shared.inside(location.name, name)
        directory = local_path(url)
        for candidate in (directory, directory / ".git") if directory else ():
            if (candidate / "HEAD").exists():
                try:
                    target = Repository(candidate).target(there)
                except DamagedRepositoryError:  # git reports it when it fetches
                    return False
                return target == repository.target(name)
        return False

    def _origin(self, location: Location, lorry: Lorry | None) -> str | None:
        """The URL of the git repository that a place follows; None if there is none."""
        if location.url is not None:
            return location.url
        if lorry is not None and lorry.type == "git" and self._imports:
            return lorry.url
        return self._trove.url if self._trove is not None else None

    def _obtain(self, repo: str, ref: str, location: Location) -> str:
        """Fetch or import a ref that `_known` does not find."""
        lorry = self.lorries.get(repo)
        pinned = lorry if lorry is not None and lorry.brings(ref) else None
        if lorry is not None and lorry.missing and not SHA.fullmatch(ref):
            raise lorry.incomplete()
        with self._locked(location):
            for bring in (self._bring_from_trove, self._bring):
                commit = self._known(repo, ref, location)  # another process may have fetched it
                if commit is None:
                    if pinned:
                        self._forget(pinned, location)
                    bring(ref, location, lorry)
                    commit = self._known(repo, ref, location)
                if commit is not None:
                    return commit
                if pinned:
                    self._compare(pinned, location)
        raise self._explain(repo, ref, location, lorry)

    def _forget(self, lorry: Lorry, location: Location) -> None:
        """Remove the ref of a commit with the lorry's import key, but another tree."""
        repository = self.repository(location)
        if self._imported(repository, lorry) is not None:
            repository.run("update-ref", "-d", lorry.full_ref)

    def _compare(self, lorry: Lorry, location: Location) -> None:
        """SourceError if the commit just fetched by a lorry's pin has another tree than recorded.

        Anybody who may push to a trove can put any commit under a pin.
        """
        repository = self.repository(location)
        commit = self._imported(repository, lorry)
        if commit is None:
            return
        assert self._trove is not None  # an import is compared where it is made
        pin = f"refs/pins/{location.name}/{lorry.import_key()}"
        raise SourceError(
            f"{lorry.where}: {lorry.name} {lorry.version}: the trove has another tree than is"
            " pinned, so it is not used\n"
            f"  pinned: tree {lorry.recorded_tree}\n"
            f"  found:  tree {repository.fact(commit).tree}\n"
            f"  where:  {pin} of {self._trove.url}\n"
            "Either somebody pushed something else there, or the recorded tree is wrong."
            f" `{command('lorry', 'import', lorry.name)}` imports it anew from where it is"
            " pinned, compares, and puts it in the trove in place of that."
        )

    def import_lorry(self, lorry: Lorry) -> str:
        """Import what a lorry pins, also if the trove has it; return the tree.

        SourceError if that fails, or makes another tree than is recorded.
        """
        location = self.aliases.locate(lorry.repo)
        with self._locked(location):
            return self._run(lorry, self.repository(location))

    def _run(self, lorry: Lorry, repository: Repository) -> str:
        made = self.importer().run(lorry, repository)
        tree = repository.fact(made).tree
        if lorry.recorded_tree and lorry.recorded_tree != tree:
            if lorry.is_derived:
                advice = (
                    "Patches or components may have changed since the tree was recorded. If that is"
                    f" intended, `{command('lorry', 'update', lorry.name)}` records the new tree."
                )
            else:
                advice = (
                    "The digests of all that was imported are right, so the record is wrong: see"
                    f" who changed it. Without it, `{command('lorry', 'import', lorry.name)}`"
                    " records what the import gives."
                )
            raise SourceError(
                f"{lorry.where}: {lorry.name} {lorry.version}: the import of what is pinned gives"
                " another tree than is recorded\n"
                f"  recorded: tree {lorry.recorded_tree}\n"
                f"  imported: tree {tree}\n{advice}"
            )
        return tree

    def _bring_from_trove(self, ref: str, location: Location, lorry: Lorry | None) -> None:
        """Fetch from the farm's trove, if the location is in it."""
        if self._trove is None or not location.name or not REF.fullmatch(ref):
            return
        repository = self.repository(location)
        name = location.name.removesuffix(".git")
        self.progress(f"{name}: looking in the trove")

        def progress(text: str) -> None:
            self.progress(f"{name}: {text}")

        if lorry is not None and lorry.brings(ref):
            pin, full = lorry.import_key(), lorry.full_ref
            shared.fetch_pin(
                self._trove, repository, location.name, pin, full, progress, self.cancel
            )
        elif SHA.fullmatch(ref) or self._origin(location, lorry) == self._trove.url:
            shared.fetch_ref(self._trove, repository, location.name, ref, progress, self.cancel)
            found = repository.find(ref)
            if found is not None:
                self._fetched.add((repository.path, found[1]))

    def _bring(self, ref: str, location: Location, lorry: Lorry | None) -> None:
        """Import by lorry, or fetch from the repository's origin."""
        repository = self.repository(location)
        if lorry is not None and lorry.brings(ref):
            if self._imports:
                self._run(lorry, repository)
        elif location.url is not None:
            self._fetch(repository, location.url, ref, location.hint)
        elif lorry is not None and lorry.type == "git" and self._imports:
            self._fetch(repository, lorry.url, ref, location.hint)

    def _fetch(self, repository: Repository, url: str, ref: str, hint: str) -> None:
        """Fetch all branches and tags, and the commit itself if it is in none of them."""

        def progress(text: str) -> None:
            self.progress(f"{url}: {text}")

        progress("fetching")
        try:
            everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            repository.fetch(url, everything, progress, self.cancel)
        except DamagedRepositoryError:
            raise
        except SourceError as error:
            how = "as it was last seen"
            if repository.find(ref) is None:
                self._fetch_commit(repository, url, ref, progress)
                how = "alone"
            if repository.find(ref) is None:
                raise SourceError(f"{error}; {hint}") from None
            self.progress(f"warning: {error}; going on with {ref} {how}")
        else:
            self._fetch_commit(repository, url, ref, progress)
        self._fetched.add((repository.path, ""))

    def _fetch_commit(self, repository: Repository, url: str, ref: str, progress: Progress) -> None:
        """Fetch the commit itself: it may be in no branch, or branches may be damaged."""
        if SHA.fullmatch(ref) and repository.find(ref) is None:
            with contextlib.suppress(SourceError):  # explained by the caller
                repository.fetch(url, [f"{ref}:refs/fabric/{ref}"], progress, self.cancel)

    def _explain(self, repo: str, ref: str, location: Location, lorry: Lorry | None) -> SourceError:
        """The error for a ref that cannot be found, with advice."""
        if location.url is not None:
            return absent.at_url(location.url, repo, ref)
        if self._trove is not None:
            url = self._trove.url
            error = absent.from_trove(url, repo, ref, location, lorry, imports=self._imports)
        else:
            exists, git = self.repository(location).exists, self.root / "git"
            error = absent.from_machine(git, repo, ref, location, lorry, exists=exists)
        hint = "" if lorry else suggest(repo, (one.repo for one in self.lorries))
        return SourceError(f"{error}{hint}", alike=error.alike)

    def holding(self, source: Source) -> Repository:
        """The repository with the commit of ``source``, fetched if missing.  SourceError."""
        location = self.aliases.locate(source.repo)
        repository = self.repository(location)
        try:
            repository.check()
            there = repository.find(source.commit) is not None
        except DamagedRepositoryError as error:
            self._remove(location, self.lorries.get(source.repo), error)
            there = False
        if not there:
            lorry = self.lorries.get(source.repo)  # a worker that has the source loads no yaml
            if lorry is not None and lorry.brings(source.ref):
                self._obtain(source.repo, source.ref, location)
            elif self._origin(location, lorry):
                self._obtain(source.repo, source.commit, location)
        if repository.find(source.commit) is None:
            raise SourceError(
                f"{source.repo}: commit {source.commit} ({source.ref}) is not in"
                f" {location.directory}; {location.hint}"
            )
        return repository

    def mended(self, source: Source, error: DamagedRepositoryError) -> Repository:
        """As `holding`, after an ``error`` that shows damaged objects."""
        location = self.aliases.locate(source.repo)
        self._remove(location, self.lorries.get(source.repo), error)
        return self.holding(source)

    def refetch(self, lorry: Lorry) -> Repository:
        """Fetch again from the URL of a lorry of type git."""
        location = self.aliases.locate(lorry.repo)
        repository = self.repository(location)
        with self._locked(location):
            self._fetch(repository, lorry.url, "", f"see {lorry.where}")
        return repository

    def repository(self, location: Location) -> Repository:
        """Where a place's commits are."""
        return self._repositories.setdefault(location.directory, Repository(location.directory))

    @contextlib.contextmanager
    def _locked(self, location: Location) -> Iterator[None]:
        name = hashlib.sha256(os.fsencode(location.directory)).hexdigest()[:32]
        waited = False

        def wait() -> None:
            nonlocal waited
            if not waited:
                self.progress(f"{location.directory.stem}: waiting for another import of it")
            waited = True
            self.cancel.pause(0.2)

        with locked(self.root / "locks" / name, wait=wait, remove=True):
            yield
