"""Files of digests: the SHA-256 of each artifact of a system, so that others can compare theirs.

``systems/NAME.digests`` stands beside ``systems/NAME.morph``.  A line has the name of a chunk or
system, of an artifact, and the SHA-256 of the artifact's archive, or ``-`` if it has no files.
Keys do not depend on the machine; the first line has the system's, which identifies the
definitions and sources that the digests are of.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric import bounds
from fabric.client.render import Screen
from fabric.errors import (
    BuildFailed,
    DefinitionsError,
    FabricError,
    Problem,
    command,
    first_of,
    in_line,
)
from fabric.host.files import read_regular, write_whole
from fabric.trove.artifacts.store import Store

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.plan import Plan

#: Artifacts that an error names.
SHOWN = 10
#: A digest of no files.
EMPTY = "-"
_KEY = re.compile(r"key ([0-9a-f]{64})")
_LINE = re.compile(r"(\S+) (\S+) (-|[0-9a-f]{64})")


class Digests(msgspec.Struct):
    """The digests of the artifacts of a system."""

    key: str  # of the system
    #: (step, artifact) -> digests: several if two chunks have one name
    artifacts: dict[tuple[str, str], set[str]] = {}


def expected_digests(options: argparse.Namespace, project: Project, system: str) -> Digests | None:
    """The digests to compare a build with, before it begins; None if they are to be written.

    DefinitionsError if the file has a mistake, FabricError if it is missing, or if the build is not
    that of others.
    """
    if options.detach:
        raise FabricError("digests are compared after the build, for which --detach does not wait")
    if options.check_digests:
        return read_digests(project.root, system)
    if options.chunks:
        raise FabricError("--write-digests needs the whole system: name no chunks")
    if project.edits and not options.clean:
        raise FabricError("--write-digests needs what others build: add --clean, or end the edits")
    return None


def handle_digests(screen: Screen, project: Project, plan: Plan, expected: Digests | None) -> None:
    """Compare a finished build with `expected_digests`, or write its digests."""
    if expected is None:
        write_digests(screen, project.store, plan, project.root)
    else:
        check_digests(screen, project.store, plan, expected)


def check_digests(screen: Screen, store: Store, plan: Plan, wanted: Digests) -> None:
    """Compare all artifacts of a build with the file of digests, and report the result.

    BuildFailed if artifacts differ, FabricError if there is nothing to compare.
    """
    system = plan.graph.path
    file = _file_of(system)
    found, absent = digests_of(store, plan)
    if not found.artifacts:
        raise FabricError(
            f"{store.url} has no artifact of {system}, so nothing is compared with {file};"
            " to compare a build of a farm, set `artifacts` to the farm's store"
        )
    differ = sorted(
        each
        for each, digests in found.artifacts.items()
        if not digests <= wanted.artifacts.get(each, set())
    )
    screen.event(
        "digests",
        file=file,
        same=len(found.artifacts) - len(differ),
        differ=[artifact for _, artifact in differ],
        absent=absent,
    )
    if differ:
        raise BuildFailed(_difference(system, wanted, found, differ))
    screen.say(f"{len(found.artifacts)} artifacts are as in {file}", "bold green")
    if absent:
        lacking = first_of(absent, SHOWN)
        screen.say(f"  not compared, as {store.shown} lacks them: {lacking}", "yellow")


def write_digests(screen: Screen, store: Store, plan: Plan, root: Path) -> None:
    """Write the file of digests of a system.  FabricError if the store lacks one of its steps."""
    system = plan.graph.path
    file = _file_of(system)
    found, absent = digests_of(store, plan)
    if absent:
        raise FabricError(
            f"{file} is not written: {store.url} lacks {first_of(absent, SHOWN)};"
            " build with an empty --cache"
        )
    lines = [
        f"{step} {artifact} {digest}"
        for (step, artifact), digests in sorted(found.artifacts.items())
        for digest in sorted(digests)
    ]
    head = [
        f"# The SHA-256 of each artifact of {system}.",
        f"# Compare yours: fabric-initiator build {shlex.quote(system)} --check-digests",
        f"key {found.key}",
    ]
    write_whole(root / file, "\n".join([*head, *lines, ""]).encode())
    screen.say(f"{file} is written: {len(lines)} artifacts", "bold green")


def digests_of(store: Store, plan: Plan) -> tuple[Digests, list[str]]:
    """The digests of what the store has of a plan, and the names of the steps that it lacks.

    Strata are lists of artifacts, and have no digests.
    """
    steps = [step for step in plan.steps if step.kind != "stratum"]
    keys = [plan.keys[step.id] for step in steps]
    found, absent = Digests(plan.keys[plan.graph.root.id] if plan.graph.root in steps else ""), []
    for step, manifest in zip(steps, store.manifests(keys), strict=True):
        if manifest is None:
            absent.append(step.name)
            continue
        for artifact in manifest.artifacts:
            digest = artifact.blob.sha256 if artifact.blob else EMPTY
            found.artifacts.setdefault((step.name, artifact.name), set()).add(digest)
    return found, absent


def read_digests(root: Path, system: str) -> Digests:
    """The digests of a system.  DefinitionsError for a mistake, FabricError without a file."""
    file = _file_of(system)
    try:
        data = read_regular(root / file, bounds.MEMORY)
    except FileNotFoundError:
        hint = command("build", system, "--write-digests")
        raise FabricError(
            f"{file}: there are no digests to compare with; write them: {hint}"
        ) from None
    except OSError as error:
        raise FabricError(f"{file}: {error.strerror or error}") from None
    found = Digests("")
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not found.key and (key := _KEY.fullmatch(line)):
            found.key = key[1]
        elif found.key and (entry := _LINE.fullmatch(line)):
            found.artifacts.setdefault((entry[1], entry[2]), set()).add(entry[3])
        else:
            expected = "STEP ARTIFACT SHA256" if found.key else "key KEY"
            problem = Problem(file, number, f"{in_line(line[:80])!r} is not of the form {expected}")
            raise DefinitionsError([problem])
    return found


def _file_of(system: str) -> str:
    """The file of digests beside a system morph."""
    return system.removesuffix(".morph") + ".digests"


def _difference(system: str, wanted: Digests, found: Digests, differ: list[tuple[str, str]]) -> str:
    total, file = len(found.artifacts), _file_of(system)
    lines = [f"{len(differ)} of {total} artifacts are not as in {file}:"]
    for each in differ[:SHOWN]:
        here = ", ".join(digest[:12] for digest in sorted(found.artifacts[each]))
        there = ", ".join(digest[:12] for digest in sorted(wanted.artifacts.get(each, ())))
        lines.append(f"  {each[1]}: {here} here, {there or 'nothing'} there")
    if len(differ) > SHOWN:
        lines.append(f"  and {len(differ) - SHOWN} more")
    if found.key and found.key != wanted.key:
        lines.append("The digests are of other definitions or sources: the system's key differs.")
    else:
        name = differ[0][0]
        lines.append(f"Is the chunk reproducible? {command('build', system, '--rebuild', name)}")
    return "\n".join(lines)
