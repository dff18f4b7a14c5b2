"""Runs lorries: each type gives one commit under the lorry's ref."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fabric.errors import NO_ROOM, SourceError, command
from fabric.host.cancel import CancelToken
from fabric.trove.importers import archive, debian, pypi, wheels
from fabric.trove.importers.apt import Apt
from fabric.trove.importers.commit import Tree, commit
from fabric.trove.importers.download import Downloads, shown
from fabric.trove.sources import git
from fabric.trove.sources.lorries import Lorry

Progress = Callable[[str], None]


class Imports:
    """Imports sources, keeping downloads and apt's lists below ``root`` (the trove's)."""

    def __init__(self, root: Path, progress: Progress, stop: CancelToken) -> None:
        self.root = root
        self.progress = progress
        self.stop = stop
        self.downloads = Downloads(root / "downloads", progress, stop)

    def run(self, lorry: Lorry, repository: git.Repository) -> str:
        """Import what the lorry (of any type but git) pins.  Call with the repository's lock held.

        Return the commit.  SourceError if it cannot be had; of that, MovedError if it is no
        longer offered.
        """
        repository.create()
        self.progress(f"{lorry.name}: importing {lorry.version}")
        try:
            made = commit(
                repository,
                lorry.full_ref,
                self._trees(lorry),
                f"{lorry.name} {lorry.version}",
                lorry.import_key(),
                self.stop,
                compress=not lorry.is_set,
            )
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise SourceError(
                f"{lorry.name}: cannot be imported: no space left on the disk of {self.root};"
                f" `{command('gc')}` frees some, and --cache or FABRIC_CACHE names another place"
            ) from error
        self.progress(f"{lorry.name}: {lorry.ref} is commit {made[:12]}")
        return made

    def _trees(self, lorry: Lorry) -> list[tuple[str, Tree]]:
        match lorry.type:
            case "tarball":
                pinned_by = f"{lorry.where}: {lorry.name}"
                file = self.downloads.get(lorry.digests[""], lorry.url, pinned_by=pinned_by)
                return [("", archive.read(file, shown(lorry.url)))]
            case "pypi":
                return pypi.import_sdist(lorry, self.downloads)
            case "debian-source":
                return debian.import_source(lorry, self.apt(lorry), self.downloads)
            case "debian-packages":
                return debian.import_packages(lorry, self.apt(lorry), self.downloads)
            case "pypi-wheels":
                return wheels.import_wheels(lorry, self.downloads, self.progress, self.stop)
        raise SourceError(f"{lorry.where}: no importer for type {lorry.type}")

    def apt(self, lorry: Lorry) -> Apt:
        """The private apt that serves a lorry."""
        kind = "deb-src" if lorry.type == "debian-source" else "deb"
        architecture = lorry.architecture or "amd64"
        return Apt(self.root / "apt", kind, architecture, self.progress, self.stop)
