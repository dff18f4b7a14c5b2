"""Imports lorries: each becomes one commit under the lorry's ref."""

from __future__ import annotations

from collections.abc import Callable

from fabric.errors import NO_ROOM, SourceError, command
from fabric.trove.importers import archive, debian, pypi, updates, wheels
from fabric.trove.importers.commit import Tree, commit
from fabric.trove.importers.context import Context
from fabric.trove.importers.download import shown
from fabric.trove.sources import git
from fabric.trove.sources.lorries import Lorry


class Imports:
    """Implements `fabric.trove.sources.repositories.Importer`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, lorry: Lorry, repository: git.Repository) -> str:
        """Import what the lorry (of any type but git) pins, with the repository locked.

        Return the commit.  SourceError if it fails; of that, MovedError if a file is no longer
        offered.
        """
        repository.create()
        self._context.progress(f"{lorry.name}: importing {lorry.version}")
        try:
            made = commit(
                repository,
                lorry.full_ref,
                self._trees(lorry),
                f"{lorry.name} {lorry.version}",
                lorry.import_key(),
                self._context.cancel,
                compress=not lorry.is_set,
            )
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise SourceError(
                f"{lorry.name}: cannot be imported: no space left on the disk of"
                f" {self._context.root}; `{command('gc')}` frees some, and --cache or FABRIC_CACHE"
                " names another place"
            ) from error
        self._context.progress(f"{lorry.name}: {lorry.ref} is commit {made[:12]}")
        return made

    def update(self, lorry: Lorry, run: Callable[[Lorry], str]) -> list[str]:
        """Pin the newest that is offered: `fabric.trove.importers.updates.update`."""
        return updates.update(lorry, self._context, run)

    def gc(self, older_than: float, *, dry_run: bool) -> int:
        """Remove downloads older than so many seconds; return how many bytes that frees."""
        return self._context.downloads.gc(older_than, dry_run=dry_run)

    def _trees(self, lorry: Lorry) -> list[tuple[str, Tree]]:
        context, downloads = self._context, self._context.downloads
        match lorry.type:
            case "tarball":
                pinned_by = f"{lorry.where}: {lorry.name}"
                file = downloads.get(lorry.digests[""], lorry.url, pinned_by=pinned_by)
                return [("", archive.read(file, shown(lorry.url)))]
            case "pypi":
                return pypi.import_sdist(lorry, downloads)
            case "debian-source":
                return debian.import_source(lorry, context.apt(lorry), downloads)
            case "debian-packages":
                return debian.import_packages(lorry, context.apt(lorry), downloads)
            case "pypi-wheels":
                return wheels.import_wheels(lorry, downloads, context.progress, context.cancel)
        raise SourceError(f"{lorry.where}: no importer for type {lorry.type}")
