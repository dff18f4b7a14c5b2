"""``verify``: checks a built system, from its artifacts back to its definitions and sources."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.client.render import size
from fabric.commands.shared.arguments import add_json, add_locked
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_plan, report_edits, report_unpinned
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.commands.shared.vouched import Vouched, difference, require_trust, vouched
from fabric.config import Settings
from fabric.errors import DamagedError, FabricError, first_of
from fabric.host.shared_files import sha256_of
from fabric.host.terminal import printable
from fabric.trove.artifacts.contents import changed_inputs
from fabric.trove.artifacts.countersigned import countersigned

if TYPE_CHECKING:
    from fabric.building.image_check import Differences
    from fabric.client.project import Project
    from fabric.jobs import Blob
    from fabric.plan import Plan
    from fabric.trust.signing import PublicKey

#: Breaks that are printed.
SHOWN = 50


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_locked(parser)
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="system morph")
    add("names", nargs="*", default=[], metavar="NAME", help="only these steps, and what they need")
    add(
        "--countersigned-by",
        metavar="KEY",
        action="append",
        default=[],
        help="each step must be countersigned with this trusted key, which is a controller's, or"
        " with another one that is given so",
    )
    add("--file", metavar="FILE", type=Path, help="a file that must be one of the artifacts")
    add(
        "--image",
        metavar="FILE",
        type=Path,
        help="a raw disk image, whose files must be those of the system",
    )
    add(
        "--added",
        metavar="PATH",
        action="append",
        default=[],
        help="a file or folder that may differ in the image, as `image` has put it there:"
        " /etc/hostname",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    seal = require_trust(settings)
    demanded = [seal.trusted(name) for name in options.countersigned_by]
    project, plan = open_plan(settings, options.system, options.names, locked=options.locked)
    steps = list(vouched(project, plan))
    # before all artifacts are read: it may be no image, or the name be wrong
    named = _named(options.file, steps) if options.file else ""
    image = _image(options.image, project, plan) if options.image else None
    checked = _Checked(project, steps, demanded)
    for one in steps:
        checked.check(plan, one)
    if options.file and not named:
        checked.wrong.append(f"{options.file}: it is no artifact of {plan.graph.system}")
    allowed = [path.strip("/") for path in options.added]
    added = []
    for path, what in image.all.items() if image is not None else ():
        if any(path == one or path.startswith(f"{one}/") for one in allowed):
            added.append(path)
        else:
            checked.wrong.append(f"{options.image}: /{printable(path)}: {what}")
    report_edits(project, plan.graph, plan.goals)
    unpinned = project.unpinned(plan.graph, plan.goals)
    if options.json:
        print_json(
            {
                "system": plan.graph.path,
                "goals": [plan.graph[goal].name for goal in plan.goals],
                "right": not checked.wrong,
                "steps": len(steps),
                "artifacts": checked.artifacts,
                "bytes": checked.bytes,
                "signed_by": dict(sorted(checked.signed_by.items())),
                "countersigned_by": dict(sorted(checked.countersigned_by.items())),
                "inputs_by_key": checked.inputs_by_key,
                "file": named or None,
                "image": {"entries": image.entries, "added": added} if image is not None else None,
                "unpinned": unpinned,
                "wrong": checked.wrong,
            }
        )
    else:
        _print(plan, steps, checked, named, options.file)
        if image is not None:
            but = f", but for {first_of(added, 8)}" if added else ""
            print(f"  image      {options.image}: {image.entries} files and folders compared{but}")
        report_unpinned(unpinned)
    return 1 if checked.wrong else 0


class _Checked:
    """Collects what is checked, and what is wrong."""

    def __init__(self, project: Project, steps: list[Vouched], demanded: list[PublicKey]) -> None:
        """``demanded``: keys one of which must have countersigned each step."""
        self._store = project.store
        self._demanded = demanded
        self._manifests = {one.key: one.manifest for one in steps if one.manifest is not None}
        self._right: set[str] = set()  # digests of blobs
        self.artifacts = 0
        self.bytes = 0
        self.signed_by: Counter[str] = Counter()  # name of a key -> steps
        self.countersigned_by: Counter[str] = Counter()
        self.inputs_by_key = 0  # steps whose manifests do not say which bytes they were made from
        self.wrong: list[str] = []

    def check(self, plan: Plan, one: Vouched) -> None:
        """Check a step: who signed it, what it says it was made from, and all its bytes."""
        manifest = one.manifest
        if manifest is None:
            why = one.damage or f"the store has no manifest {one.key} that counts"
            self.wrong.append(f"{one.step.name}: {why}")
            return
        self.signed_by.update({key.name for key in self._store.signers(manifest)})
        found = countersigned(self._store, manifest)
        by = {key.id: key.name for key in found.by} if found is not None else {}
        self.countersigned_by.update(by.values())
        if self._demanded and not any(key.id in by for key in self._demanded):
            who = " or ".join(key.name for key in self._demanded)
            self.wrong.append(f"{one.step.name}: it is not countersigned by {who}")
        job = plan.job(one.step)
        if wrong := difference(job, manifest):
            self.wrong.append(f"{one.step.name}: its manifest has another {wrong}")
        elif not manifest.input_digests and job.made_of:
            self.inputs_by_key += 1
        else:
            changed = changed_inputs(job, self._manifests)
            names = [self._manifests[key].name for key in changed]
            if names:
                self.wrong.append(
                    f"{one.step.name}: it was made from other contents of {first_of(names, 8)}"
                    " than the store has"
                )
        self.artifacts += len(manifest.artifacts)
        for blob in manifest.blobs():
            self._read(one, blob)

    def _read(self, one: Vouched, blob: Blob) -> None:
        if blob.sha256 in self._right:
            return
        try:
            self._store.verify(blob)
        except DamagedError as error:
            self.wrong.append(f"{one.step.name}: {error}")
        else:
            self._right.add(blob.sha256)
            self.bytes += blob.size


def _named(file: Path, steps: list[Vouched]) -> str:
    """The artifact that a file is: "zlib-libs of zlib"; "" if it is none."""
    try:
        digest = sha256_of(file)
    except OSError as error:
        raise FabricError(f"{file}: cannot be read: {error.strerror}") from None
    for one in steps:
        for artifact in one.manifest.artifacts if one.manifest else ():
            if artifact.blob is not None and artifact.blob.sha256 == digest:
                return f"{artifact.name} of {one.step.name}"
    return ""


def _image(file: Path, project: Project, plan: Plan) -> Differences:
    """How a disk image differs from the system."""
    from fabric.building.image_check import compare_image

    key = plan.keys[plan.graph.root.id]
    manifest = project.store.manifest(key)
    blob = manifest.artifacts[0].blob if manifest and manifest.kind == "system" else None
    if blob is None:
        raise FabricError(f"{plan.graph.system}: the store has no files of this system")
    try:
        return compare_image(file, project.store.path(blob, key))
    except OSError as error:
        raise FabricError(f"{file}: cannot be read: {error.strerror}") from None


def _print(
    plan: Plan, steps: list[Vouched], checked: _Checked, named: str, file: Path | None
) -> None:
    for wrong in checked.wrong[:SHOWN]:
        print(wrong)
    if len(checked.wrong) > SHOWN:
        print(f"and {len(checked.wrong) - SHOWN} more")
    goals = [plan.graph[goal] for goal in plan.goals]
    named_goals = first_of([goal.name for goal in goals if goal is not plan.graph.root], 8)
    what = f"{named_goals} of {plan.graph.system}" if named_goals else plan.graph.system
    verdict = "is NOT" if checked.wrong else "is"
    print(f"{what} {verdict} what its definitions and sources give")
    print(f"  checked    {len(steps)} steps, {checked.artifacts} artifacts, {size(checked.bytes)}")
    names = [f"{name} ({count})" for name, count in checked.signed_by.most_common()]
    print(f"  signed by  {first_of(names, 8) or 'nobody'}")
    if checked.countersigned_by:
        names = [f"{name} ({count})" for name, count in checked.countersigned_by.most_common()]
        print(f"  countersigned by  {first_of(names, 8)}")
    if checked.inputs_by_key:
        print(
            f"  by key     what {checked.inputs_by_key} of {len(steps)} steps were made from: an"
            " older version built them, and recorded no digests"
        )
    if named:
        print(f"  file       {file} is {named}")
