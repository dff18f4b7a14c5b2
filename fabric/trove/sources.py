"""Sources: from a repository and a ref in the definitions to a tree of files.

Everything stands below one directory, shared by any number of processes::

    git/ALIAS/NAME.git     repositories that lorries fill or people push to
    git/mirrors/...        copies of repositories elsewhere
    trees/...              exported trees (`fabric.trove.export`)
    downloads/<sha256>     what lorries downloaded
    apt/, locks/

A ref is a commit, a tag or a branch.  Commits and tags stay what they are; a branch of another
machine's repository is looked up again, once in the life of a `Sources`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fabric.definitions.graph import Submodule
from fabric.errors import SourceError
from fabric.jobs import Source
from fabric.trove.files import locked
from fabric.trove.git import SHA, Repository
from fabric.trove.lorries import Lorries, Lorry
from fabric.trove.places import Place, Places, local_path
from fabric.trove.stop import Stop

if TYPE_CHECKING:
    from fabric.trove.export import Exports

Progress = Callable[[str], None]
Wanted = tuple[str, str, Sequence[Submodule]]

#: Imports and fetches at the same time: they mostly wait for the network.
PARALLEL = 2


def _unheard(text: str) -> None:
    """Progress that nobody wants to see."""


class Sources:
    """The trove's sources below ``root``.

    ``aliases`` maps alias -> pattern (see `fabric.trove.places`), ``lorries`` is the definitions'
    ``sources/`` directory.  ``progress`` gets a line of text now and then, from any thread.
    With ``moved="update"`` a pin that is no longer offered is renewed, with a warning, instead
    of being an error; that rewrites the lorry's files.
    """

    def __init__(
        self,
        root: Path,
        aliases: Mapping[str, str],
        lorries: Path | None = None,
        *,
        progress: Progress = _unheard,
        moved: Literal["error", "update"] = "error",
    ) -> None:
        self.root = root
        self.progress = progress
        self._places = Places(root, aliases)
        self._lorry_directory = lorries
        self._moved = moved
        self._repositories: dict[Path, Repository] = {}
        self._fetched: set[Path] = set()
        self._stop = Stop()

    @cached_property
    def lorries(self) -> Lorries:
        """The definitions' lorries.  DefinitionsError if one of them is wrong."""
        return Lorries(self._lorry_directory)

    @cached_property
    def exports(self) -> Exports:
        """The exported trees."""
        from fabric.trove.export import Exports

        return Exports(self.root / "trees")

    # -- from names to commits ---------------------------------------------------------------

    def resolve(self, repo: str, ref: str, submodules: Sequence[Submodule] = ()) -> Source:
        """The commit and tree that ``ref`` of ``repo`` is, imported or fetched if it is not here.

        ``submodules`` are URLs that the definitions give instead of .gitmodules'.
        SourceError says what was tried and what to do.
        """
        place = self._places.locate(repo)
        commit = self._known(repo, ref, place) or self._obtain(repo, ref, place)
        return self._source(repo, ref, commit, submodules)

    def _source(self, repo: str, ref: str, commit: str, submodules: Sequence[Submodule]) -> Source:
        """What a commit that is here is made of, down to its deepest submodule."""
        fact = self._repository(self._places.locate(repo)).fact(commit)
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
            target = self._places.relative(repo, target)
            below = given.submodules if given else ()
            inside.append((path, self.resolve(target, sha, below)))
        return Source(repo, ref, commit, fact.tree, tuple(inside))

    def resolve_all(self, wanted: Iterable[Wanted]) -> list[Source]:
        """Resolve many (repo, ref, submodules) at once.  SourceError names all that failed."""
        asked = list(wanted)
        unique = {_identity(one): one for one in asked}
        absent: deque[tuple[object, Wanted]] = deque()
        done: dict[object, Source] = {}
        for identity, one in unique.items():
            repo, ref, submodules = one
            commit = self._at_hand(repo, ref)
            if commit:
                done[identity] = self._source(repo, ref, commit, submodules)
            else:
                absent.append((identity, one))
        done |= self._resolve_in_threads(absent)
        return [done[_identity(one)] for one in asked]

    def _resolve_in_threads(self, absent: deque[tuple[object, Wanted]]) -> dict[object, Source]:
        """Resolve what has to be imported or fetched, PARALLEL at a time."""
        done: dict[object, Source] = {}
        failures: list[Exception] = []

        def work() -> None:
            while True:
                try:
                    identity, one = absent.popleft()
                except IndexError:
                    return
                try:
                    done[identity] = self.resolve(*one)
                except Exception as error:  # noqa: BLE001 - raised again below
                    failures.append(error)

        # Not an executor's threads: those would be waited for at exit, however stuck they are.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(absent)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C among others: what is under way ends soon
            absent.clear()
            self._stop.set()
            for thread in threads:
                thread.join(1.0)
            self._stop = Stop()
            raise
        for failure in failures:
            if not isinstance(failure, SourceError):
                raise failure
        if failures:
            raise SourceError("\n".join(sorted({str(failure) for failure in failures})))
        return done

    def _at_hand(self, repo: str, ref: str) -> str | None:
        try:
            return self._known(repo, ref, self._places.locate(repo))
        except SourceError:
            return None  # said again, and gathered, when it is resolved

    def _known(self, repo: str, ref: str, place: Place) -> str | None:
        """The commit of ``ref``, if it is here and cannot be another by now."""
        repository = self._repository(place)
        found = repository.find(ref)
        if found is None:
            return None
        commit, name = found
        lorry = self.lorries.get(repo)
        if lorry is not None and name == lorry.full_ref:
            current = repository.fact(commit).import_key == lorry.import_key()
            return commit if current else None
        url = _origin(place, lorry)
        if url and name.startswith("refs/heads/") and not self._is_current(repository, url, name):
            return None
        return commit

    def _is_current(self, repository: Repository, url: str, name: str) -> bool:
        """Whether a mirrored branch is still what it is at its origin."""
        if repository.path in self._fetched:
            return True
        directory = local_path(url)
        for candidate in (directory, directory / ".git") if directory else ():
            if (candidate / "HEAD").exists():
                return Repository(candidate).target(name) == repository.target(name)
        return False

    def _obtain(self, repo: str, ref: str, place: Place) -> str:
        """Import or fetch what `_known` does not know."""
        repository = self._repository(place)
        lorry = self.lorries.get(repo)
        with self._locked(place):
            commit = self._known(repo, ref, place)  # another process may have brought it
            if commit is None:
                url = _origin(place, lorry)
                if lorry is not None and lorry.type != "git" and ref == lorry.ref:
                    self._import(lorry, repository)
                elif url:
                    self._fetch(repository, url, ref, place.hint)
                found = repository.find(ref)
                commit = found[0] if found else None
        if commit is None:
            raise SourceError(self._explain(repo, ref, place, lorry))
        return commit

    def _import(self, lorry: Lorry, repository: Repository) -> None:
        from fabric.trove.importers.debian import MovedError
        from fabric.trove.imports import Imports

        imports = Imports(self.root, self.progress, self._stop)
        try:
            imports.run(lorry, repository)
        except MovedError as error:
            if self._moved == "error":
                raise
            from fabric.trove.pins import renew

            self.progress(f"warning: {error}")
            self.progress(f"warning: {lorry.name}: taking what is offered now, as was asked for")
            renewed = renew(lorry, imports, keep_ref=True)
            self.__dict__.pop("lorries", None)  # read them again
            imports.run(renewed, repository)

    def _fetch(self, repository: Repository, url: str, ref: str, hint: str) -> None:
        """Fetch all branches and tags, and the very commit if it is in none of them."""
        repository.create()
        self.progress(f"{url}: fetching")
        try:
            everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            repository.fetch(url, everything, self.progress, self._stop)
        except SourceError as error:
            if repository.find(ref) is None:
                raise SourceError(f"{error}; {hint}") from None
            self.progress(f"warning: {error}; going on with {ref} as it was last seen")
        self._fetched.add(repository.path)
        if SHA.fullmatch(ref) and repository.find(ref) is None:
            with contextlib.suppress(SourceError):  # explained by the caller
                repository.fetch(url, [f"{ref}:refs/fabric/{ref}"], self.progress, self._stop)

    def _explain(self, repo: str, ref: str, place: Place, lorry: Lorry | None) -> str:
        """Why a ref cannot be had, and what would help."""
        if place.url is not None:
            return f"{repo}: {place.url} has no ref {ref}"
        if lorry is not None and lorry.type != "git":
            return (
                f"{repo}: no ref {ref}: its lorry ({lorry.where}) brings {lorry.ref};"
                " change one of them"
            )
        if lorry is not None:
            return f"{repo}: no ref {ref} at {lorry.url}, where its lorry ({lorry.where}) leads"
        if self._repository(place).exists:
            return f"{repo}: no ref {ref} in {place.directory}, and no lorry that could bring it"
        name = repo.partition(":")[2] or repo
        return (
            f"{repo}: no such repository: there is no {place.directory} and no lorry for it;"
            f" add sources/{name.rpartition('/')[2]}.lorry to the definitions, {place.hint},"
            " or configure its alias to be a URL"
        )

    # -- lorries -----------------------------------------------------------------------------

    def run_lorry(self, name: str) -> Source:
        """Import what a lorry pins, unless it is here.  For type git: fetch again."""
        lorry = self.lorries.named(name)
        if lorry.type == "git":
            place = self._places.locate(lorry.repo)
            repository = self._repository(place)
            with self._locked(place):
                self._fetch(repository, lorry.url, "", f"see {lorry.where}")
            return self.resolve(lorry.repo, repository.newest_ref())
        return self.resolve(lorry.repo, lorry.ref)

    def update_lorry(self, name: str) -> list[str]:
        """Renew a lorry's pins in its files; return what changed, a line each."""
        from fabric.trove import pins
        from fabric.trove.imports import Imports

        imports = Imports(self.root, self.progress, self._stop)
        changes = pins.update(self.lorries, name, imports)
        self.__dict__.pop("lorries", None)  # read them again
        return changes

    # -- from commits to files ---------------------------------------------------------------

    def export(self, source: Source) -> Path:
        """A directory with the files of ``source``, not to be changed; submodules are empty.

        SourceError if its commit is neither here nor to be had where it came from.
        """
        found = self.exports.find(source.tree)
        if found is not None:
            return found
        place = self._places.locate(source.repo)
        repository = self._repository(place)
        if repository.find(source.commit) is None:
            self._obtain_commit(source, place)
        with locked(self.root / "locks" / source.tree):
            found = self.exports.find(source.tree)
            if found is None:
                self.progress(f"{source.repo}: exporting {source.ref}")
                found = self.exports.make(repository, source.commit, source.tree)
        return found

    def _obtain_commit(self, source: Source, place: Place) -> None:
        repository = self._repository(place)
        lorry = self.lorries.get(source.repo)
        if lorry is not None and lorry.type != "git" and source.ref == lorry.ref:
            self._obtain(source.repo, source.ref, place)
        elif _origin(place, lorry):
            self._obtain(source.repo, source.commit, place)
        if repository.find(source.commit) is None:
            raise SourceError(
                f"{source.repo}: commit {source.commit} ({source.ref}) is not in"
                f" {place.directory}; {place.hint}"
            )

    # -- housekeeping ------------------------------------------------------------------------

    def gc(self, older_than: float, *, dry_run: bool = False) -> int:
        """Remove exported trees and downloads unused for that many seconds; return how many
        bytes that frees.  Repositories stay: only they hold what cannot be made again."""
        from fabric.trove.importers.download import Downloads

        downloads = Downloads(self.root / "downloads", self.progress, self._stop)
        freed = downloads.gc(older_than, dry_run=dry_run)
        return freed + self.exports.gc(older_than, dry_run=dry_run)

    def _repository(self, place: Place) -> Repository:
        return self._repositories.setdefault(place.directory, Repository(place.directory))

    @contextlib.contextmanager
    def _locked(self, place: Place) -> Iterator[None]:
        name = hashlib.sha256(str(place.directory).encode()).hexdigest()[:32]
        waited = False

        def wait() -> None:
            nonlocal waited
            if not waited:
                self.progress(f"{place.directory.stem}: waiting for another import of it")
            waited = True
            self._stop.pause(0.2)

        with locked(self.root / "locks" / name, wait=wait):
            yield


def _origin(place: Place, lorry: Lorry | None) -> str:
    """The URL of the git repository that a place mirrors; "" if it mirrors none."""
    if lorry is not None and lorry.type == "git":
        return lorry.url
    return place.url or ""


def _identity(wanted: Wanted) -> object:
    repo, ref, submodules = wanted
    return repo, ref, tuple(submodules)
