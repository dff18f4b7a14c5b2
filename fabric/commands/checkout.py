"""``checkout``: copies an artifact out of the store, as a directory or a tar."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard

from fabric.building.tree import Unpacker, remove
from fabric.client.render import size
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.keys import find_manifest, is_key, mending
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import healing, open_built
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.definitions.graph import Step
from fabric.errors import FabricError, command, in_line
from fabric.host.files import beside, real
from fabric.jobs import Blob, Content, Manifest
from fabric.plan import Plan
from fabric.trove.artifacts.errors import brief
from fabric.trove.artifacts.manifests import steps_of
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_store


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "system", metavar="SYSTEM|KEY", help="system morph; or at least 8 digits of a cache key"
    )
    parser.add_argument(
        "artifact", nargs="?", metavar="ARTIFACT", help="artifact to copy (default: the system)"
    )
    parser.add_argument(
        "--to", required=True, metavar="PATH", help="new directory, or FILE.tar, FILE.tar.zst"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing PATH")


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    if is_key(options.system):
        _check_out_key(options, settings)
        return 0
    names = [options.artifact] if options.artifact else []
    project, plan = open_built(settings, options.system, names)
    store = project.store
    with store.reserve(plan.keys.values()), healing(project, plan):
        store.use(plan.goal_keys)
        blobs: list[Blob] = []
        for goal in plan.goals:
            step = plan.graph[goal]
            wanted = (options.artifact,) if options.artifact in step.artifacts else step.artifacts
            blobs += _blobs(store, plan, step, wanted)
        _copy(options, store, blobs, (project.root, settings.cache_dir))
    return 0


def _check_out_key(options: argparse.Namespace, settings: Settings) -> None:
    store = open_store(settings)
    manifest = find_manifest(store, options.system)
    names = tuple(artifact.name for artifact in manifest.artifacts)
    if options.artifact and options.artifact not in names:
        raise FabricError(
            f"{options.artifact}: {manifest.name} {manifest.key[:12]} has no such artifact,"
            f" but {', '.join(names)}"
        )
    parts = steps_of(manifest) if manifest.kind == "stratum" else []
    keys = [*parts, manifest.key]
    with store.reserve(keys), mending(store, keys, "it is removed, and built again when needed"):
        store.use([manifest.key])
        wanted = (options.artifact,) if options.artifact else names

        def lacking(artifact: str) -> FabricError:
            return FabricError(
                f"{artifact}: the store {store.url} no longer has it; build stratum"
                f" {manifest.name} again"
            )

        blobs = _of_manifest(store, manifest, wanted, lacking)
        _copy(options, store, blobs, (settings.cache_dir,))


def _copy(
    options: argparse.Namespace, store: Store, blobs: list[Blob], needed: Iterable[Path]
) -> None:
    """Copy archives to where a user wants them; never over a folder that holds ``needed`` ones."""
    to = Path(options.to)
    _check_target(to, needed, force=options.force)
    total = sum(blob.size for blob in blobs)
    try:
        if to.name.endswith((".tar", ".tar.zst")):
            _to_tar(store, blobs, to)
        else:
            _to_directory(store, blobs, to)
    except OSError as error:
        raise FabricError(f"{to} cannot be written: {brief(error)}") from error
    if options.json:
        print_json({"to": str(to), "sha256": [blob.sha256 for blob in blobs], "size": total})
    else:
        print(f"{to}: {len(blobs)} archive{'s' * (len(blobs) != 1)}, {size(total)} in the store")


def _check_target(to: Path, needed: Iterable[Path], *, force: bool) -> None:
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
    for one in (Path.cwd(), *needed):
        if real(one).is_relative_to(real(to)):
            raise FabricError(f"{to}: not replaced, because it holds {one}; name another path")


def _blobs(store: Store, plan: Plan, step: Step, artifacts: tuple[str, ...]) -> list[Blob]:
    """The archives of these artifacts; an artifact of a stratum has those of its chunks."""

    def lacking(artifact: str) -> FabricError:
        return _not_built(plan, step, artifact)

    manifest = store.manifest(plan.keys[step.id])
    if manifest is None and step.kind == "stratum":  # not built if a system takes a part of it
        contents = [content for one in artifacts for content in plan.contents(step, one)]
        return _of_contents(store, contents, lacking)
    if manifest is None:
        raise lacking(step.name)
    return _of_manifest(store, manifest, artifacts, lacking)


def _of_manifest(
    store: Store,
    manifest: Manifest,
    artifacts: Iterable[str],
    lacking: Callable[[str], FabricError],
) -> list[Blob]:
    found: list[Blob] = []
    for artifact in (manifest.artifact(one) for one in artifacts):
        if artifact.blob is not None:
            found.append(artifact.blob)
        if manifest.kind == "stratum":
            found += _of_contents(store, artifact.contents, lacking)
    return found


def _of_contents(
    store: Store, contents: Iterable[Content], lacking: Callable[[str], FabricError]
) -> list[Blob]:
    found = []
    for content in contents:
        manifest = store.manifest(content.key)
        if manifest is None:
            raise lacking(content.artifact)
        blob = manifest.artifact(content.artifact).blob
        found += [] if blob is None else [blob]
    return found


def _not_built(plan: Plan, step: Step, what: str) -> FabricError:
    of = [] if step is plan.graph.root else [step.name]
    build = command("build", plan.graph.path, *of)
    return FabricError(f"{what}: not built yet with these inputs; run: {build}")


def _to_directory(store: Store, blobs: list[Blob], to: Path) -> None:
    """Unpack the archives.  Devices, which only root can make, are left out and reported.

    Other users of this machine must not run the setuid programs of the tree, which get no security
    updates here: for an ordinary user they lose the bits, and a tree of root's is for root alone.
    """
    scratch = Path(tempfile.mkdtemp(prefix=beside(to), dir=to.parent))
    try:
        tree = Unpacker(scratch, keep_raising=os.geteuid() == 0)
        for blob in blobs:
            with store.open(blob) as archive:
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


def _to_tar(store: Store, blobs: list[Blob], to: Path) -> None:
    if len(blobs) != 1:
        raise FabricError(
            f"{to}: {len(blobs)} archives do not fit in one tar; name one artifact, or a directory"
        )
    part = to.with_name(f"{beside(to)}{os.getpid()}")
    try:
        if to.name.endswith(".tar"):
            with store.open(blobs[0]) as source, part.open("wb") as target:
                zstandard.ZstdDecompressor().copy_stream(source, target)
        else:
            store.fetch(blobs[0], part)
        _replace(to, part)
    finally:
        part.unlink(missing_ok=True)


def _replace(to: Path, fresh: Path) -> None:
    """Put the complete ``fresh`` in the place of ``to``."""
    remove(to)
    fresh.rename(to)
