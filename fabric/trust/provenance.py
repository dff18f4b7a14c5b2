"""Makes provenance statements: where the artifacts of a step come from, for other tools.

Source: https://in-toto.io/Statement/v1 with the predicate https://slsa.dev/provenance/v1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from fabric.jobs import Job, Manifest, Source

#: The type of a statement, in its envelope.
KIND = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
#: What the parameters mean: the commands and the environment of a step are in its recipe.
BUILD_TYPE = "urn:distbuild:step:1"

#: A thing with its digests, as in-toto describes it.
Resource = dict[str, Any]


class Definitions(msgspec.Struct, frozen=True):
    """The definitions of a system."""

    system: str  # the path of its morph
    commit: str  # 40 hex digits; "" outside of git
    tree: str  # of the files as they were read, committed or not


def statement(
    job: Job,
    manifest: Manifest,
    made_from: Mapping[str, Manifest],
    definitions: Definitions,
    signed_by: str,
) -> bytes | None:
    """The statement about a step as JSON; None if it has no artifact of its own.

    ``made_from``: the manifests of the steps that it was made from, by key, with the contents that
    ``manifest`` records, if it does.  ``signed_by``: the id
    of the key that signed its manifest.
    """
    subjects = list(_artifacts(manifest))
    if not subjects:
        return None
    inner: dict[str, object] = {"cacheKey": job.key, "recipe": job.recipe, **manifest.inputs}
    if job.made_of:
        inner["inputsNamedBy"] = "digest" if manifest.input_digests else "cacheKey"
    if manifest.origin:
        inner["sameContentsAs"] = manifest.origin
    if job.host_tools:
        inner["hostTools"] = job.host_tools
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "system": definitions.system,
                "step": job.name,
                "kind": job.kind,
                "architecture": job.arch,
                "artifacts": list(job.artifacts),
            },
            "internalParameters": inner,
            "resolvedDependencies": [
                _definitions(definitions),
                *(_sources(job.source_name, job.source) if job.source else ()),
                *_parts(job, made_from),
            ],
        },
        "runDetails": {
            "builder": {"id": f"urn:distbuild:key:{signed_by}"},
            "metadata": _times(manifest),
            "byproducts": _log(manifest),
        },
    }
    document = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    return msgspec.json.encode(document)


def _artifacts(manifest: Manifest) -> Iterable[Resource]:
    for one in manifest.artifacts:
        if one.blob is not None:
            yield {"name": one.name, "digest": {"sha256": one.blob.sha256}}


def _definitions(definitions: Definitions) -> Resource:
    digest = {"gitTree": definitions.tree}
    if definitions.commit:
        digest["gitCommit"] = definitions.commit
    return {"name": "definitions", "digest": digest}


def _sources(name: str, source: Source) -> Iterable[Resource]:
    digest = {"gitCommit": source.commit, "gitTree": source.tree}
    annotations = {"repo": source.repo, "ref": source.ref}
    yield {"name": f"source of {name}", "digest": digest, "annotations": annotations}
    for path, inner in source.submodules:
        yield from _sources(f"{name}/{path}", inner)


def _parts(job: Job, made_from: Mapping[str, Manifest]) -> Iterable[Resource]:
    """The artifacts that a step was made from: those that are staged, or that it contains."""
    wanted: dict[tuple[str, str], None] = {}
    for key, artifact in job.made_of:
        names = [artifact] if artifact else [one.name for one in made_from[key].artifacts]
        wanted |= dict.fromkeys((key, name) for name in names)
    for key, name in wanted:
        blob = made_from[key].artifact(name).blob
        if blob is not None:
            annotations = {"cacheKey": key}
            yield {"name": name, "digest": {"sha256": blob.sha256}, "annotations": annotations}


def _times(manifest: Manifest) -> dict[str, str]:
    times = {"invocationId": manifest.key}
    if manifest.built:
        began = max(0.0, manifest.built - manifest.seconds)
        times |= {"startedOn": _time(began), "finishedOn": _time(manifest.built)}
    return times


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log(manifest: Manifest) -> list[Resource]:
    if manifest.log is None:
        return []
    return [{"name": manifest.log_name, "digest": {"sha256": manifest.log.sha256}}]
