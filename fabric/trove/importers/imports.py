"""Imports lorries: each becomes one commit under the lorry's ref."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric.errors import NO_ROOM, SourceError, command
from fabric.trove.importers import archive, debian, debian_series, pypi, updates, wheels
from fabric.trove.importers.commit import Part, Tree, commit
from fabric.trove.importers.context import Context
from fabric.trove.importers.download import shown
from fabric.trove.importers.patching import Change, patched
from fabric.trove.sources import git
from fabric.trove.sources.lorries import Lorry
from fabric.trove.sources.lorry_parts import Component

#: The ref of an import that is to be patched; no lorry brings it.
_UNPATCHED = "refs/fabric/unpatched"


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
            key = lorry.import_key()  # reads the patches before anything is downloaded
            parts, changes = self._content(lorry)
            made = commit(
                repository,
                _UNPATCHED if changes else lorry.full_ref,
                parts,
                f"{lorry.name} {lorry.version}",
                key,
                self._context.cancel,
                compress=not lorry.is_set,
            )
            if changes:
                patches = "patch" if len(changes) == 1 else "patches"
                self._context.progress(f"{lorry.name}: applying {len(changes)} {patches}")
                try:
                    cancel = self._context.cancel
                    made = patched(repository, made, lorry.full_ref, changes, cancel)
                finally:
                    repository.run("update-ref", "-d", _UNPATCHED)
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

    def update(self, lorry: Lorry, run: Callable[[Lorry], str] | None) -> list[str]:
        """Pin the newest that is offered: `fabric.trove.importers.updates.update`."""
        return updates.update(lorry, self._context, run)

    def gc(self, older_than: float, *, dry_run: bool) -> int:
        """Remove downloads older than so many seconds; return how many bytes that frees."""
        return self._context.downloads.gc(older_than, dry_run=dry_run)

    def _content(
        self, lorry: Lorry, prefix: str = "", shown_as: str = ""
    ) -> tuple[list[Part], list[Change]]:
        """What a lorry brings below ``prefix``: archives, and the patches to apply to them.

        ``shown_as`` names it in messages if it is a component.
        """
        main, changes = self._main(lorry)
        parts = [
            Part(f"{prefix}{folder}", tree, "" if folder else shown_as) for folder, tree in main
        ]
        changes = [msgspec.structs.replace(one, prefix=prefix) for one in changes]
        below: list[Change] = []
        for path, part in sorted(lorry.parts.items()):
            folder, name = f"{prefix}{path}/", f"{part.where}: {lorry.name}: component {path!r}"
            if part.lorry:
                more, theirs = self._content(lorry.brought(part), folder, name)
                parts += more
                below += theirs
            else:
                parts.append(Part(folder, self._component(part, name), name))
        own = [
            Change(
                prefix=prefix,
                where=f"{patch.where}: {lorry.name}",
                name=f"{lorry.file.parent.name}/{patch.path}",
                content=content,
                advice="Make it anew against this source, or take it out of `patches`.",
            )
            for patch, content in lorry.series
        ]
        return parts, [*below, *changes, *own]

    def _main(self, lorry: Lorry) -> tuple[list[tuple[str, Tree]], list[Change]]:
        """The trees of a lorry's own archives, each with its folder, and Debian's patches."""
        context, downloads = self._context, self._context.downloads
        changes: list[Change] = []
        match lorry.type:
            case "tarball":
                pinned_by = f"{lorry.where}: {lorry.name}"
                file = downloads.get(lorry.digests[""], lorry.url, pinned_by=pinned_by)
                trees = [("", archive.read(file, shown(lorry.url)))]
            case "pypi":
                trees = pypi.import_sdist(lorry, downloads)
            case "debian-source":
                trees = debian.import_source(lorry, context.apt(lorry), downloads)
                if lorry.debian_patches:
                    changes = debian_series.changes(lorry, downloads)
            case "debian-packages":
                trees = debian.import_packages(lorry, context.apt(lorry), downloads)
            case "pypi-wheels":
                trees = wheels.import_wheels(lorry, downloads, context.progress, context.cancel)
            case _:
                raise SourceError(f"{lorry.where}: no importer for type {lorry.type}")
        if lorry.inner:
            trees[0] = ("", self._inner(trees[0][1], lorry.inner, f"{lorry.where}: {lorry.name}"))
        return trees, changes

    def _component(self, part: Component, name: str) -> Tree:
        """The tree of a component that is an archive of its own."""
        assert part.sha256 is not None
        file = self._context.downloads.get(part.sha256, part.url, pinned_by=name)
        tree = archive.read(file, shown(part.url))
        return self._inner(tree, part.inner, name) if part.inner else tree

    def _inner(self, tree: Tree, pattern: str, where: str) -> Tree:
        context = self._context
        return archive.read_inner(tree, pattern, where, context.root, context.cancel)
