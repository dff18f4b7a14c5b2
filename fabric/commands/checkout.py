"""``checkout``: copies an artifact out of the store, as a directory or a tar."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import zstandard

from fabric.building.tree import Unpacker, remove
from fabric.client.project import Project
from fabric.client.render import size
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import healing, open_built
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.definitions.graph import Step
from fabric.errors import FabricError, command, in_line
from fabric.host.files import beside, real
from fabric.jobs import Blob, Content
from fabric.plan import Plan
from fabric.trove.artifacts.errors import brief


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("system", metavar="SYSTEM", help="system morph")
    parser.add_argument(
        "artifact", nargs="?", metavar="ARTIFACT", help="artifact to copy (default: the system)"
    )
    parser.add_argument(
        "--to", required=True, metavar="PATH", help="new directory, or FILE.tar, FILE.tar.zst"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing PATH")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    names = [options.artifact] if options.artifact else []
    project, plan = open_built(settings, options.system, names)
    with project.store.reserve(plan.keys.values()), healing(project, plan):
        _check_out(options, project, plan)
    return 0


def _check_out(options: argparse.Namespace, project: Project, plan: Plan) -> None:
    project.store.use(plan.goal_keys)
    blobs: list[Blob] = []
    for goal in plan.goals:
        step = plan.graph[goal]
        wanted = (options.artifact,) if options.artifact in step.artifacts else step.artifacts
        blobs += _blobs(project, plan, step, wanted)
    to = Path(options.to)
    _check_target(to, project, force=options.force)
    total = sum(blob.size for blob in blobs)
    try:
        if to.name.endswith((".tar", ".tar.zst")):
            _to_tar(project, blobs, to)
        else:
            _to_directory(project, blobs, to)
    except OSError as error:
        raise FabricError(f"{to} cannot be written: {brief(error)}") from error
    if options.json:
        print_json({"to": str(to), "sha256": [blob.sha256 for blob in blobs], "size": total})
    else:
        print(f"{to}: {len(blobs)} archive{'s' * (len(blobs) != 1)}, {size(total)} in the store")


def _check_target(to: Path, project: Project, *, force: bool) -> None:
    """FabricError if ``to`` cannot be made, or must not be replaced."""
    if not to.parent.is_dir():
        raise FabricError(f"{to.parent}: no such directory")
    if not (to.exists() or to.is_symlink()):
        return
    if not force:
        raise FabricError(f"{to}: exists already; --force replaces it")
    if to.is_symlink() or to.is_file():
        return
    if not to.is_dir():
        raise FabricError(f"{to}: neither a folder nor an ordinary file; name another path")
    for needed in (Path.cwd(), project.root, project.settings.cache_dir):
        if real(needed).is_relative_to(real(to)):
            raise FabricError(f"{to}: not replaced, because it holds {needed}; name another path")


def _blobs(project: Project, plan: Plan, step: Step, artifacts: tuple[str, ...]) -> list[Blob]:
    """The archives of these artifacts; an artifact of a stratum has those of its chunks."""
    manifest = project.store.manifest(plan.keys[step.id])
    if manifest is None and step.kind == "stratum":  # not built if a system takes a part of it
        contents = [content for one in artifacts for content in plan.contents(step, one)]
        return [blob for content in contents for blob in _content(project, plan, step, content)]
    if manifest is None:
        raise _not_built(plan, step, step.name)
    found: list[Blob] = []
    for artifact in (manifest.artifact(one) for one in artifacts):
        if artifact.blob is not None:
            found.append(artifact.blob)
        for content in artifact.contents if manifest.kind == "stratum" else ():
            found += _content(project, plan, step, content)
    return found


def _content(project: Project, plan: Plan, step: Step, content: Content) -> list[Blob]:
    manifest = project.store.manifest(content.key)
    if manifest is None:
        raise _not_built(plan, step, content.artifact)
    blob = manifest.artifact(content.artifact).blob
    return [] if blob is None else [blob]


def _not_built(plan: Plan, step: Step, what: str) -> FabricError:
    of = [] if step is plan.graph.root else [step.name]
    build = command("build", plan.graph.path, *of)
    return FabricError(f"{what}: not built yet with these inputs; run: {build}")


def _to_directory(project: Project, blobs: list[Blob], to: Path) -> None:
    """Unpack the archives.  Devices, which only root can make, are left out and reported.

    Other users of this machine must not run the setuid programs of the tree, which get no security
    updates here: for an ordinary user they lose the bits, and a tree of root's is for root alone.
    """
    scratch = Path(tempfile.mkdtemp(prefix=beside(to), dir=to.parent))
    try:
        tree = Unpacker(scratch, keep_raising=os.geteuid() == 0)
        for blob in blobs:
            with project.store.open(blob) as archive:
                tree.add(archive, blob.sha256[:12])
        tree.finish(0o700 if tree.raising else 0o755)
        if tree.raising:
            print(
                f"{to}: only root can enter it, because it has setuid programs;"
                f" `chmod 755 {shlex.quote(str(to))}` opens it to others",
                file=sys.stderr,
            )
        for device in sorted(tree.devices):
            print(f"left out: the device /{in_line(device)}", file=sys.stderr)
        _replace(to, scratch)
    except BaseException:
        remove(scratch)
        raise


def _to_tar(project: Project, blobs: list[Blob], to: Path) -> None:
    if len(blobs) != 1:
        raise FabricError(
            f"{to}: {len(blobs)} archives do not fit in one tar; name one artifact, or a directory"
        )
    part = to.with_name(f"{beside(to)}{os.getpid()}")
    try:
        if to.name.endswith(".tar"):
            with project.store.open(blobs[0]) as source, part.open("wb") as target:
                zstandard.ZstdDecompressor().copy_stream(source, target)
        else:
            project.store.fetch(blobs[0], part)
        _replace(to, part)
    finally:
        part.unlink(missing_ok=True)


def _replace(to: Path, fresh: Path) -> None:
    """Put the complete ``fresh`` in the place of ``to``."""
    remove(to)
    fresh.rename(to)
