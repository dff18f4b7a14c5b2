"""The steps of a built system whose manifests trusted keys signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from fabric import bounds
from fabric.errors import DamagedError, FabricError, command, in_line
from fabric.inputs import COMMIT, REF, inputs
from fabric.trove.configured import open_seal

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.config import Settings
    from fabric.definitions.graph import Step
    from fabric.jobs import Job, Manifest
    from fabric.plan import Plan
    from fabric.trust.seal import Seal

#: Inputs that are not in the key: several commits may have the same tree.
_MAY_DIFFER = {REF, COMMIT}


class Vouched(NamedTuple):
    """A step with its manifest; None if the store has none that counts."""

    step: Step
    key: str
    manifest: Manifest | None
    damage: str = ""  # why a manifest that is there cannot be read


def require_trust(settings: Settings) -> Seal:
    """What signs and checks.  FabricError if no keys are trusted."""
    seal = open_seal(settings)
    if seal is None:
        raise FabricError(
            "no keys are trusted, so nothing can be proved: name a directory in the setting"
            " trusted-keys, and build"
        )
    return seal


def vouched(project: Project, plan: Plan) -> Iterator[Vouched]:
    """The steps of a plan, each key once, in the order in which they are built."""
    store = project.store

    def read(key: str) -> tuple[Manifest | None, str]:
        try:
            return store.manifest(key), ""
        except DamagedError as error:
            return None, str(error)

    steps = {plan.keys[step.id]: step for step in plan.steps}
    found = store.each(read, steps)
    for (key, step), (manifest, damage) in zip(steps.items(), found, strict=True):
        yield Vouched(step, key, manifest, damage)


def difference(job: Job, manifest: Manifest) -> str:
    """What a manifest says of its step that is not so; "" if all is."""
    # not its name: strata may call one chunk differently, which is not in the key
    if (manifest.kind, manifest.arch, manifest.rebuild_of) != (job.kind, job.arch, job.rebuild_of):
        return "step"
    theirs, ours = manifest.inputs, inputs(job)
    for name in sorted({*theirs, *ours} - _MAY_DIFFER):
        if theirs.get(name) != ours.get(name):
            return in_line(name)[: bounds.NAME]
    if tuple(one.name for one in manifest.artifacts) != job.artifacts:
        return "list of artifacts"
    if manifest.staged != tuple(one.key for one in job.staged):
        return "staging area"
    lists = dict(job.lists)
    if manifest.input_digests and len(manifest.input_digests) != len(job.made_of):
        return "number of inputs"
    if any(one.contents != lists.get(one.name, ()) for one in manifest.artifacts):
        return "list of contents"
    return ""


def not_built(plan: Plan, steps: list[Step]) -> FabricError:
    """The error for steps that the store does not have."""
    names = ", ".join(dict.fromkeys(step.name for step in steps[:5]))
    more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
    return FabricError(
        f"{names}{more}: the store has no manifest that counts; run:"
        f" {command('build', plan.graph.path)}"
    )
