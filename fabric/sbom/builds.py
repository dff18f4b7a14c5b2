"""Tells what is in the systems that a store has ever built, by the manifests alone.

A manifest names the source of a chunk, and not what that is: the lorry of the same repository says
it, as it is now.  If the source is the one that this lorry pins, it is described as in an SBOM.
Another one has the version that its ref names, and no statement about a vulnerability counts for
it: it may lack the patch.  Of another set of packages, an SBOM that was made of it tells what is in
the image; without one, the names of its files tell the versions of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from urllib.parse import unquote

import msgspec
from packageurl import PackageURL

from fabric import bounds
from fabric.digest import Digest
from fabric.errors import SourceError
from fabric.inputs import TREE
from fabric.jobs import Artifact, Manifest, Source
from fabric.sbom.bill import Bill, Component
from fabric.sbom.collect import ChunkFact, inside_of, of_lorry, of_repository
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.lock_files import Lock, Locked
from fabric.trove.sources.lorries import Lorry, default_ref
from fabric.trove.sources.resolve import Sources


class Build(msgspec.Struct, frozen=True):
    """A system in the store."""

    key: str
    name: str
    arch: str
    morph: str  # its path in the definitions
    built: float  # Unix time; 0: not recorded
    chunks: tuple[tuple[str, tuple[str, ...]], ...]  # key of a chunk, its artifacts in the system


class _Chunk(msgspec.Struct, frozen=True):
    """A chunk in the store."""

    name: str
    repo: str
    ref: str
    commit: str
    tree: str
    filled: frozenset[str]  # its artifacts that have files


class Builds:
    """The systems in a store.  The constructor reads all manifests; StoreError.

    ``known`` gives the facts that an SBOM found of a chunk, by its key and its artifacts in a
    system.  ``progress`` is called with lines for the user.
    """

    def __init__(
        self,
        store: Store,
        sources: Sources,
        known: Callable[[str, list[str]], ChunkFact | None],
        progress: Callable[[str], None],
    ) -> None:
        self._sources = sources
        self._known = known
        self._chunks: dict[str, _Chunk] = {}
        self.systems: list[Build] = []
        #: Sets of packages of which no SBOM was made: what is in them is not known exactly.
        self.unread: set[str] = set()
        keys = _newest(store, progress)
        for key, found in zip(keys, store.each(_reader(store), keys), strict=True):
            if isinstance(found, Build):
                self.systems.append(found)
            elif found is not None:
                self._chunks[key] = found
        self.systems.sort(key=lambda one: (one.name, one.built, one.key))

    def bill(self, systems: Iterable[Build]) -> tuple[Bill, dict[str, list[Build]]]:
        """A bill with all that is in the images of these systems, and where each component is.

        A component of it has the ref "NUMBER/REF".
        """
        where: dict[tuple[str, tuple[str, ...]], list[Build]] = {}
        for system in systems:
            for part in system.chunks:
                where.setdefault(part, []).append(system)
        found: list[Component] = []
        places: dict[str, list[Build]] = {}
        for number, ((key, artifacts), there) in enumerate(where.items()):
            chunk = self._chunks.get(key)
            if chunk is not None and not chunk.filled.isdisjoint(artifacts):
                for one in self._components(chunk, self._known(key, list(artifacts)), str(number)):
                    found.append(one)
                    places[one.ref] = there
        bill = Bill(
            system="",
            arch="",
            description="",
            version="",
            key="",
            created=0,
            tool="",
            author=None,
            archive=None,
            license="",
            components=tuple(found),
        )
        return bill, places

    def lacking(self, systems: Iterable[Build]) -> int:
        """The number of chunks of these systems that the store has no more."""
        return len({key for one in systems for key, _ in one.chunks} - self._chunks.keys())

    def _components(
        self, chunk: _Chunk, fact: ChunkFact | None, prefix: str
    ) -> Iterator[Component]:
        lorry = self._sources.lorries.get(chunk.repo)
        made = Component(
            ref=f"{prefix}/{chunk.name}",
            kind="chunk",
            name=chunk.name,
            version=chunk.ref,
            in_image=True,
        )
        if lorry is None or lorry.type == "git":
            url = lorry.url if lorry else chunk.repo
            of_now = replace(lorry, vex=()) if lorry else None  # which commit is it about?
            yield of_repository(made, chunk.ref, url, chunk.commit, of_now, None)
            return
        fact = fact or ChunkFact()
        if not chunk.tree or chunk.tree != lorry.recorded_tree:
            lorry = self._as_it_was(lorry, chunk, fact)
        whole = of_lorry(made, lorry)
        yield whole
        for one in inside_of(whole, lorry, fact):
            if one.in_image:
                yield one

    def _as_it_was(self, lorry: Lorry, chunk: _Chunk, fact: ChunkFact) -> Lorry:
        """The lorry with what is known of a source that it does not pin."""
        version = lorry.version if lorry.brings(chunk.ref) else _version(lorry, chunk.ref)
        past = replace(
            lorry,
            version=version,
            purl=_unversioned(lorry.purl),
            sha256=None,
            components={},
            debian_sha256=None,
            parts={},
            patches=(),
            vex=(),
        )
        if not lorry.is_set:
            return past
        packages = [
            Locked(*one.locked, Digest(sha256), 0) for sha256, one in fact.packages.items()
        ] or list(self._packages(lorry, chunk))
        return past.with_lock(Lock(packages=tuple(packages)))

    def _packages(self, lorry: Lorry, chunk: _Chunk) -> Iterator[Locked]:
        """The packages of a set, by the names of its files; none if it is not on this machine."""
        self.unread.add(f"{chunk.name} {chunk.ref}")
        names: list[str] = []

        def note(name: str) -> bool:
            names.append(name)
            return False

        source = Source(chunk.repo, chunk.ref, chunk.commit, chunk.tree)
        try:
            if self._sources.at_hand(chunk.repo, chunk.commit):
                list(self._sources.files(source, note))
        except SourceError:
            return
        split = _of_deb if lorry.type == "debian-packages" else _of_wheel
        for name in names:
            if parts := split(name):
                yield Locked(*parts, Digest("0" * 64), 0)


def _newest(store: Store, progress: Callable[[str], None]) -> list[str]:
    """The keys in a store, those used last first, at most so many as are searched."""
    used, url = store.used(), store.shown
    keys = sorted(used, key=lambda key: (-used[key], key))
    if len(keys) > bounds.SEARCHED_STEPS:
        more, most = len(keys) - bounds.SEARCHED_STEPS, f"{bounds.SEARCHED_STEPS:,}"
        progress(
            f"{url}: {more:,} built steps are not searched, those that were used longest ago:"
            f" the limit is {most}"
        )
        del keys[bounds.SEARCHED_STEPS :]
    if "://" in url and not url.startswith("file:"):
        progress(f"{url}: reading the manifests of {len(keys):,} built steps")
    return keys


def _reader(store: Store) -> Callable[[str], Build | _Chunk | None]:
    def read(key: str) -> Build | _Chunk | None:
        manifest = store.whole_manifest(key)
        if manifest is None or manifest.rebuild_of:
            return None
        if manifest.kind == "system":
            return _system(manifest)
        return _chunk(manifest) if manifest.kind == "chunk" else None

    return read


def _system(manifest: Manifest) -> Build:
    parts: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        for one in artifact.contents:
            parts.setdefault(one.key, []).append(one.artifact)
    return Build(
        manifest.key,
        manifest.name,
        manifest.arch,
        manifest.metadata.get("morph", ""),
        manifest.built,
        tuple((key, tuple(names)) for key, names in parts.items()),
    )


def _chunk(manifest: Manifest) -> _Chunk:
    about = manifest.metadata

    def has_files(one: Artifact) -> bool:
        return one.blob is not None

    return _Chunk(
        manifest.name,
        about.get("repo", ""),
        about.get("ref", ""),
        about.get("sha1", ""),
        manifest.inputs.get(TREE, ""),
        frozenset(one.name for one in filter(has_files, manifest.artifacts)),
    )


def _version(lorry: Lorry, ref: str) -> str:
    """The version that another ref names, if it is made like that of the lorry: v1.2 of 1.2."""
    version = default_ref(lorry.version)
    prefix = lorry.ref.removesuffix(version) if lorry.ref.endswith(version) else ""
    return ref.removeprefix("refs/tags/").removeprefix("refs/heads/").removeprefix(prefix)


def _unversioned(purl: str) -> str:
    """A package URL of the definitions without a version; one that is none as it is."""
    try:
        return PackageURL.from_string(purl)._replace(version=None).to_string()
    except ValueError:
        return purl


def _of_deb(name: str) -> tuple[str, str, str] | None:
    parts = name.removesuffix(".deb").split("_")
    if len(parts) != 3 or not name.endswith(".deb"):  # NAME_VERSION_ARCHITECTURE
        return None
    return parts[0], unquote(parts[1]), parts[2]


def _of_wheel(name: str) -> tuple[str, str, str] | None:
    parts = name.removesuffix(".whl").rsplit("-", 4)
    if len(parts) != 5 or not name.endswith(".whl"):  # NAME-VERSION-PYTHON-ABI-PLATFORM
        return None
    return parts[0], parts[1], "-".join(parts[2:])
