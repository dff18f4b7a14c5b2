"""Finds steps with equal contents, so that a change without effect ends where it was made.

The cache key of a step names the keys of the steps that it is made from, so it changes with each of
their inputs.  Its *content key* names what these steps gave instead: the digests of the artifacts
that are staged; for a system, those of its artifacts, and their metadata.  Two steps with one
content key have the same inputs, byte for byte.  If the store has one of them, the other is not
built: its manifest names the same blobs, and the step that was built as its ``origin``.

Hints are small objects in the store, each with the key of a built step:

- by the digest of an output: the last step that gave it;
- by a content key: the last step that was made from these contents;
- by kind, name and architecture: the last step of that name.

A step that is built once more (`Job.rebuild_of`) has no equal, and no hint names it.

A hint may be lost or damaged; that costs a build.  Only the broker writes hints, from the manifests
of steps that it had built.  A remote store is asked about many steps at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from fabric.bounds import OUTPUTS_KNOWN
from fabric.errors import DamagedError
from fabric.inputs import inputs
from fabric.jobs import Artifact, Job, Manifest
from fabric.trove.artifacts.store import Store, name_digest

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class _Inputs(NamedTuple):
    """What a job is made from, by content."""

    key: str  # the content key
    digests: tuple[str, ...]  # `Manifest.input_digests`


class Recorded(NamedTuple):
    """Keys of steps, and the hints that remain to be written: digest -> key."""

    keys: frozenset[str]
    hints: dict[str, str]


class Contents:
    """Looks for equal steps in ``store``, and studies built ones, for one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._outputs: dict[str, bytes] = {}  # by the key of a chunk

    def record(self, jobs: Sequence[Job]) -> Recorded:
        """Steps that have just been built; ``keys`` are those whose outputs were known before.

        Only from these other steps may have been built.  StoreError if the store does not answer.
        """
        for job in jobs:
            self.forget(job.key)
        made = self._inputs(jobs)

        def study(job: Job) -> tuple[str, dict[str, str]]:
            manifest = self._store.whole_manifest(job.key)
            if manifest is None:
                return "", {}
            output = output_of(manifest)
            self._remember(job.key, output)
            if job.rebuild_of:
                return "", {}
            known = self._store.hint(output.hex()) is not None
            return job.key if known else "", _hints(manifest, _key(made[job.key]))

        return _recorded(self._store.each(study, jobs))

    def find_equal(self, jobs: Sequence[Job]) -> Recorded:
        """Give steps the outputs of steps with equal contents; ``keys`` are those that have one.

        StoreError if the store does not answer.
        """
        made = self._inputs(jobs)

        def look(job: Job) -> tuple[str, dict[str, str]]:
            mine = made[job.key]
            origin = self._store.hint(mine.key) if mine is not None else None
            found = self._store.whole_manifest(origin) if origin is not None else None
            if mine is None or found is None or not _is_like(found, job, mine):
                return "", {}
            signers = [one.id for one in self._store.signers(found)]
            if self._store.is_signed and not signers:  # it has just been removed
                return "", {}
            equal = _equal(found, job, signers)
            if not self._store.put_equal(equal):
                return "", {}
            self._remember(job.key, output_of(equal))
            return job.key, _hints(equal, mine.key)

        return _recorded(self._store.each(look, jobs))

    def forget(self, key: str) -> None:
        """A step is built again, and may have another output.  Any thread may call this."""
        self._outputs.pop(key, None)

    def _inputs(self, jobs: Sequence[Job]) -> dict[str, _Inputs | None]:
        """The inputs by key; None if a job is made from no step, or from an absent one."""
        staged = dict.fromkeys(one.key for job in jobs for one in job.staged)
        unknown = [key for key in staged if key not in self._outputs]
        for key, manifest in zip(unknown, self._manifests(unknown), strict=True):
            if manifest is not None:
                self._remember(key, output_of(manifest))
        return {job.key: self._inputs_of(job) for job in jobs}

    def _inputs_of(self, job: Job) -> _Inputs | None:
        if job.rebuild_of:
            return None
        if job.kind == "chunk":
            outputs = [self._outputs[one.key] for one in job.staged if one.key in self._outputs]
            if not outputs or len(outputs) < len(job.staged):
                return None
            digests = tuple(output.hex() for output in outputs)
            return _Inputs(content_key_of(job, outputs), digests)
        keys = dict.fromkeys(content.key for _, contents in job.lists for content in contents)
        manifests = dict(zip(keys, self._manifests(keys), strict=True))
        found = {key: one for key, one in manifests.items() if one is not None}
        if len(found) < len(keys):
            return None
        return _Inputs(content_key_of(job, contents_of(job, found)), input_digests(job, found))

    def _manifests(self, keys: Iterable[str]) -> list[Manifest | None]:
        return list(self._store.each(self._store.whole_manifest, keys))

    def _remember(self, key: str, output: bytes) -> None:
        if len(self._outputs) >= OUTPUTS_KNOWN:
            self._outputs.clear()
        self._outputs[key] = output


def _recorded(found: Iterable[tuple[str, dict[str, str]]]) -> Recorded:
    keys = set()
    hints: dict[str, str] = {}
    for key, some in found:
        keys.add(key)
        hints |= some
    return Recorded(frozenset(keys - {""}), hints)


def _hints(manifest: Manifest, content_key: str | None) -> dict[str, str]:
    """The hints of a step.  They name the newest: gc removes the oldest steps, and their hints."""
    names = [
        output_of(manifest).hex(),
        name_digest(manifest.kind, manifest.name, manifest.arch),
        *([] if content_key is None else [content_key]),
    ]
    return dict.fromkeys(names, manifest.key)


def _key(inputs: _Inputs | None) -> str | None:
    return inputs.key if inputs is not None else None


def _is_like(found: Manifest, job: Job, inputs: _Inputs) -> bool:
    """Whether a step has the artifacts of a job, and was made from the same, as far as it says."""
    names = tuple(one.name for one in found.artifacts)
    same = found.input_digests in ((), inputs.digests)
    return same and found.kind == job.kind and names == job.artifacts


def _equal(found: Manifest, job: Job, signers: Iterable[str]) -> Manifest:
    """The manifest of a job that has the output of another step."""
    origin = found.origin or found.key
    return replace(
        found,
        key=job.key,
        log_name=job.log,
        metadata=job.metadata,
        name=job.name,
        origin="" if origin == job.key else origin,
        origin_signers=tuple(sorted({*found.origin_signers, *signers})),
        inputs=inputs(job),
        staged=tuple(one.key for one in job.staged),
        artifacts=_with_contents(job, found),
    )


def output_of(manifest: Manifest) -> bytes:
    """The digest of everything that a chunk brings into a staging area."""
    artifacts = [(one.name, one.blob.sha256 if one.blob else "") for one in manifest.artifacts]
    return _digest("output", artifacts)


def input_digests(job: Job, made_from: Mapping[str, Manifest]) -> tuple[str, ...]:
    """`Manifest.input_digests`; ``made_from`` has the manifests by key."""
    return tuple(input_digest(made_from[key], artifact) for key, artifact in job.made_of)


def input_digest(manifest: Manifest, artifact: str) -> str:
    """The digest of a step as an input, or of one of its artifacts; "" if that has no files."""
    if not artifact:
        return output_of(manifest).hex()
    blob = manifest.artifact(artifact).blob
    return blob.sha256 if blob is not None else ""


def changed_inputs(job: Job, manifests: Mapping[str, Manifest]) -> list[str]:
    """The keys of inputs of a built job that have other contents than those it was made from.

    ``manifests`` are by key; an input without one is left out.  None is known to differ if the
    manifest of the job does not record its inputs.
    """
    recorded = manifests[job.key].input_digests
    found: dict[str, None] = {}
    for (key, artifact), then in zip(job.made_of, recorded, strict=False):
        if (manifest := manifests.get(key)) is None:
            continue
        try:
            changed = input_digest(manifest, artifact) != then
        except DamagedError:  # it has no such artifact
            changed = True
        if changed:
            found[key] = None
    return list(found)


def contents_of(job: Job, manifests: Mapping[str, Manifest]) -> list[object]:
    """Digests and metadata of the artifacts in a system; ``manifests`` are its chunks' by key."""
    found: list[object] = []
    for _, contents in job.lists:
        for content in contents:
            manifest = manifests[content.key]
            blob = manifest.artifact(content.artifact).blob
            about = [manifest.name, manifest.arch, manifest.metadata]
            found.append([content.artifact, blob.sha256 if blob else "", about])
    return found


def content_key_of(job: Job, contents: object) -> str:
    """The content key of a job made from ``contents``: outputs, or `contents_of` a system."""
    return _digest("contents", [job.recipe, contents]).hex()


def _with_contents(job: Job, found: Manifest) -> tuple[Artifact, ...]:
    """The artifacts of an equal step, with the keys of the job's own parts."""
    lists = dict(job.lists)
    return tuple(replace(one, contents=lists.get(one.name, ())) for one in found.artifacts)


def _digest(what: str, value: object) -> bytes:
    return hashlib.sha256(_encode([what, value])).digest()
