"""Finds what a built system is made of: its archives, its packages, the licenses of its sources.

What is found of a chunk depends on its key and on the artifacts that the system takes, so it is
kept in a file named by these: the next SBOM reads no package again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.building import archive
from fabric.definitions.graph import Step
from fabric.host.files import recall, remember, sealed, unsealed
from fabric.jobs import Artifact, Blob, Manifest, Source
from fabric.plan import Plan
from fabric.sbom import licenses, packages
from fabric.sbom.bill import Archive, ImageFile
from fabric.sbom.collect import Built, ChunkFact, PackageFact
from fabric.sbom.image_files import files_of
from fabric.trove.artifacts.store import Store
from fabric.trove.importers.wheels import wheel_name
from fabric.trove.sources.lorries import Lorry
from fabric.trove.sources.resolve import Sources

#: Increases when other facts are found in the same files.
_FORMAT = 3

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ChunkFact)


class Finder:
    """Finds the facts of chunks, and keeps them in ``folder``.

    ``progress`` is called with a line before a chunk's files are read.
    """

    def __init__(
        self, store: Store, sources: Sources, folder: Path, progress: Callable[[str], None]
    ) -> None:
        self._store = store
        self._sources = sources
        self._folder = folder
        self._progress = progress
        self._detector = version("licenseclassifier")

    def built(
        self, plan: Plan, system: Manifest, edited: Container[str] = (), *, files: bool = False
    ) -> Built:
        """The facts about a system in the store, and its ``files`` if they are wanted.

        ``edited``: names of edited chunks.  Without a manifest of a chunk, which may be removed
        while the system stays, the chunk has no archives.
        """
        graph = plan.graph
        taken: dict[str, list[str]] = {}  # id of a chunk -> its artifacts in the image
        for stratum, name in graph.root.contents:
            for chunk, artifact in graph[stratum].lists[name]:
                taken.setdefault(chunk, []).append(artifact)
        manifests = self._store.manifests([plan.keys[chunk] for chunk in taken])
        chunks, inside = {}, set()
        parts: dict[tuple[str, str], tuple[str, str, Blob]] = {}  # (id, artifact) -> for `files_of`
        for (chunk, names), manifest in zip(taken.items(), manifests, strict=True):
            if manifest is None:
                self._progress(f"sbom: the store has no more {graph[chunk].name}: no digests of it")
                inside.add(chunk)
                continue
            there = [manifest.artifact(name) for name in dict.fromkeys(names)]
            for one in there:
                if one.blob is not None:
                    parts[chunk, one.name] = (chunk, manifest.key, one.blob)
            if any(one.blob is not None for one in there):
                inside.add(chunk)
                chunks[chunk] = self._fact(plan, graph[chunk], manifest, there)
        return Built(
            key=system.key,
            archive=self._archive(system.artifacts[0]),
            commits={step: (one.commit, one.tree) for step, one in plan.sources.items()},
            edited=frozenset(step for step in plan.sources if graph[step].name in edited),
            chunks=chunks,
            in_image=frozenset(inside),
            files=self._files(plan, system, parts) if files else (),
        )

    def _files(
        self,
        plan: Plan,
        system: Manifest,
        parts: Mapping[tuple[str, str], tuple[str, str, Blob]],
    ) -> tuple[ImageFile, ...]:
        graph, blob = plan.graph, system.artifacts[0].blob
        if blob is None:
            return ()
        self._progress(f"sbom: reading the files of {graph.system}")
        order = dict.fromkeys(
            part for stratum, name in graph.root.contents for part in graph[stratum].lists[name]
        )
        return files_of(
            self._store, (system.key, blob), [parts[part] for part in order if part in parts]
        )

    def _fact(self, plan: Plan, step: Step, manifest: Manifest, there: list[Artifact]) -> ChunkFact:
        names = [one.name for one in there]
        if (known := self.known(manifest.key, names)) is not None:
            return known
        self._progress(f"sbom: reading {step.name}")
        fact = self._find(plan.sources[step.id], manifest, there)
        with suppress(OSError):
            remember(self._file(manifest.key, names), sealed(_encode(fact)))
        return fact

    def known(self, key: str, names: list[str]) -> ChunkFact | None:
        """What was found of the artifacts ``names`` of a chunk before; None: nothing."""
        file = self._file(key, names)
        with suppress(msgspec.DecodeError):
            if (known := unsealed(recall(file))) is not None:
                fact = _decoder.decode(known)
                with suppress(OSError):
                    os.utime(file)  # `gc` removes those that are not used
                return fact
        return None

    def _file(self, key: str, names: list[str]) -> Path:
        identity = _encode([_FORMAT, self._detector, key, names])
        return self._folder / hashlib.sha256(identity).hexdigest()

    def _find(self, source: Source, manifest: Manifest, there: list[Artifact]) -> ChunkFact:
        archives = tuple(one for each in there if (one := self._archive(each)) is not None)
        lorry = self._sources.lorries.get(source.repo)
        if lorry is not None and lorry.is_set and lorry.brings(source.ref):
            whole = {one.name for one in manifest.artifacts if one.blob} <= {a.name for a in there}
            paths = None if whole else self._paths(manifest, there)
            return ChunkFact(archives, packages=self._packages(source, lorry, paths))
        license, named = self.license_of(source)
        return ChunkFact(archives, license, named)

    def _archive(self, artifact: Artifact) -> Archive | None:
        blob = artifact.blob
        if blob is None:
            return None
        sha512 = packages.hashed(self._store.stream(blob))
        return Archive(f"{artifact.name}.tar.zst", blob.sha256, sha512, blob.size)

    def _paths(self, manifest: Manifest, there: list[Artifact]) -> frozenset[bytes]:
        """The paths of all but folders in the artifacts."""
        found: set[bytes] = set()
        for artifact in there:
            if artifact.blob is None:
                continue
            with self._store.open(artifact.blob, manifest.key) as file:
                found |= {
                    packages.merged(entry.name)
                    for entry, _ in archive.read(file)
                    if entry.type != archive.DIRECTORY
                }
        return frozenset(found)

    # -- sources -----------------------------------------------------------------------------

    def license_of(self, source: Source) -> tuple[str, tuple[str, ...]]:
        """The license of a source, and its files that speak of licenses."""
        texts: dict[str, str] = {}
        named: list[str] = []
        for path, size, pieces in self._sources.files(source, licenses.speaks):
            if len(named) == bounds.SBOM_TEXTS:
                return "", tuple(sorted(named))
            shown = os.fsencode(path).decode(errors="backslashreplace")
            named.append(shown)
            if size <= bounds.SBOM_TEXT:
                texts[shown] = b"".join(pieces).decode(errors="replace")
        if len(texts) < len(named):
            return "", tuple(sorted(named))
        return licenses.found(texts)

    def _packages(
        self, source: Source, lorry: Lorry, taken: frozenset[bytes] | None
    ) -> dict[str, PackageFact]:
        """SHA-256 of each package file -> its facts."""
        deb = lorry.type == "debian-packages"
        locked = {one.file_name if deb else wheel_name(one): one for one in lorry.locked()}
        read: dict[str, packages.Read] = {}
        for path, _, pieces in self._sources.files(source, locked.keys().__contains__):
            one = locked[path]
            with tempfile.TemporaryFile() as file:
                packages.as_file(pieces, file)
                read[one.name] = (
                    packages.debian(one.name, one.version, file, taken)
                    if deb
                    else packages.wheel(file)
                )
        facts = packages.shared(read)
        if facts and not any(fact.inside for fact in facts.values()):
            # files were renamed or packed anew: none can be told from the others
            facts = {n: msgspec.structs.replace(f, inside=True) for n, f in facts.items()}
        return {
            one.sha256: msgspec.structs.replace(
                facts[one.name], locked=(one.name, one.version, one.architecture)
            )
            for one in locked.values()
            if one.name in facts
        }
