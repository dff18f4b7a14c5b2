"""Names the inputs of a step, so that a later build can tell which of them has changed.

A manifest keeps them.  The steps that the step is made from are left out: a manifest has their
keys.  Each value is bounded: a long one, or a list, is replaced by a digest.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from fabric.definitions.keys import KEY_VERSION
from fabric.jobs import Job, Source

#: Most bytes of a value that is kept as it is.
SHORT = 64
#: The beginning of a value that is a digest.
DIGEST = "sha256:"
#: Inputs that describe the source.  Only its tree and those of its submodules are in the key.
REF, COMMIT, TREE, SUBMODULES = (
    "source-ref",
    "source-commit",
    "source-tree",
    "source-submodules",
)
#: The version of the build rules: `KEY_VERSION`.
RULES = "build-rules"
TOOLS = "host-tools"
#: The beginning of names of several inputs: variables of the environment, strata of a system.
ENVIRONMENT, STRATUM = "environment ", "stratum "

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def inputs(job: Job) -> dict[str, str]:
    """The inputs of a step by name; those that are fields of a morph have the field's name."""
    found = {RULES: str(KEY_VERSION)}
    if job.kind == "chunk":
        found |= _of_chunk(job)
    found |= {ENVIRONMENT + name: _short(text) for name, text in job.environment.items()}
    strata: dict[str, list[str]] = {}
    for part in job.strata:
        strata.setdefault(part.stratum, []).append(part.artifact)
    for stratum, artifacts in strata.items():
        found[STRATUM + stratum] = _short(" ".join(artifacts))
    return found


def _of_chunk(job: Job) -> dict[str, str]:
    found = {"name": _short(job.source_name), "build-mode": job.mode, "prefix": _short(job.prefix)}
    if job.source is not None:
        found |= {
            REF: _short(job.source.ref),
            COMMIT: job.source.commit,
            TREE: job.source.tree,
        }
        if job.source.submodules:
            found[SUBMODULES] = _digest(_trees(job.source))
    if job.host_tools:
        found[TOOLS] = _digest(job.host_tools)
    if job.max_jobs is not None:
        found["max-jobs"] = str(job.max_jobs)
    lists = {
        **dict(job.commands),
        "products": job.rules,
        "devices": job.devices,
        "system-integration": sorted(job.integration),
    }
    return found | {name: _digest(value) for name, value in lists.items() if value}


def _trees(source: Source) -> list[object]:
    return [source.tree, [(path, _trees(one)) for path, one in sorted(source.submodules)]]


def _short(text: str) -> str:
    whole = len(text.encode()) <= SHORT and not text.startswith(DIGEST)
    return text if whole else _digest(text)


def _digest(value: object) -> str:
    return DIGEST + sha256(_encode(value)).hexdigest()[:32]
