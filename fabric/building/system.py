"""Assembles a system: unpacks its artifacts, runs integration scripts, and packs one archive.

Unlike the old tool, the log names chunks that bring the same file; the later one wins, as there.
Also as there, ``/etc/os-release`` is always written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from msgspec.structs import replace

from fabric.building import archive, ldconfig, sandbox
from fabric.building.archive import Entry, Packed
from fabric.building.build_script import PATH, CommandList, script
from fabric.building.chunk import INTEGRATION
from fabric.building.clock import REAL, clock_ahead
from fabric.building.conditions import conditions_of
from fabric.building.log import Log
from fabric.building.tree import Unpacker, scan, with_links
from fabric.building.workspace import Workspace
from fabric.definitions.environment import INTEGRATION_PATH
from fabric.errors import BuildFailed, MachineFault, in_line
from fabric.host.cancel import CancelToken
from fabric.host.progress import in_phase
from fabric.jobs import Content, Job, Manifest
from fabric.trove.artifacts.contents import content_key_of, contents_of, input_digests

#: The environment of integration scripts in jobs of older controllers, which have none.
_ENVIRONMENT = {"PATH": INTEGRATION_PATH}

#: Most bytes of a path in a remark.
_SHOWN = 100


class Assembled(NamedTuple):
    """The result of assembling a system; the last three are as in `Manifest`."""

    archives: dict[str, Packed | None]  # by artifact
    remarks: tuple[str, ...]
    perturbed: tuple[str, ...]
    input_digests: tuple[str, ...]


def build_system(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
) -> Assembled:
    """Assemble a system in ``scratch``, an empty directory.

    BuildFailed if chunks conflict or an integration script fails, MachineFault if something is
    missing.
    """
    phase("fetch")
    rootfs = scratch / "rootfs"
    rootfs.mkdir()
    tree = Unpacker(rootfs, cancel.check)
    [(name, contents)] = job.lists
    manifests = _manifests(workspace, contents)
    for path, text in _unpack(contents, manifests, tree, workspace, cancel, phase):
        _write(tree, path, text, name)
    content_key = content_key_of(job, contents_of(job, manifests))
    for path, text in _describe(job, name, content_key):
        _write(tree, path, text, name)
    for twice, before, after in tree.replaced:
        log.write(f"warning: /{in_line(twice)} of {before} is replaced by that of {after}")
    tree.finish()
    phase("integrate")
    limits = limits.begun()
    perturbed = _integrate(job, tree, rootfs, log, cancel, limits)
    phase("store")

    def check() -> None:
        cancel.check()
        limits.check("storing")

    found = scan(rootfs, check)
    if ldconfig.RUBBISH not in tree.files:
        found.pop(ldconfig.RUBBISH, None)
    for device, entry in tree.devices.items():
        found.setdefault(device, entry._replace(name=device))
    entries = [found[path] for path in sorted(found)]
    packed = archive.pack(with_links(entries), scratch / "archive", check)
    digests = input_digests(job, manifests)
    return Assembled({name: packed}, _remarks(tree), perturbed, digests)


def _remarks(tree: Unpacker) -> tuple[str, ...]:
    """A remark, in one line, if chunks bring the same files."""
    if not tree.replaced:
        return ()
    path, before, after = tree.replaced[0]
    shown = in_line(path[:_SHOWN].decode("utf-8", "backslashreplace"))
    more = len(tree.replaced) - 1
    return (
        f"/{shown} of {before} is replaced by that of {after}"
        + (f", and {more} more file{'s' * (more > 1)} likewise: its log names them" * (more > 0)),
    )


def _unpack(
    contents: Sequence[Content],
    manifests: Mapping[str, Manifest],
    tree: Unpacker,
    workspace: Workspace,
    cancel: CancelToken,
    phase: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Unpack every artifact, and yield its metadata: (path, text)."""
    store = workspace.store
    found = [(one, manifests[one.key].artifact(one.artifact).blob) for one in contents]
    wanted = [(content.key, blob) for content, blob in found if blob is not None]
    store.bring(wanted, cancel.check, in_phase("fetch", phase))
    for content, blob in found:
        paths: list[bytes] = []
        if blob is not None:
            with store.open(blob, content.key, cancel.check) as file:
                paths = tree.add(file, content.artifact)
        names = [path.decode("utf-8", "surrogateescape") for path in paths]
        digest = {"sha256": blob.sha256} if blob is not None else {}
        yield _meta(manifests[content.key], content.artifact, names, digest)


def _describe(job: Job, name: str, content_key: str) -> Iterator[tuple[str, str]]:
    """The metadata of the strata and of the system: (path, text)."""
    for part in job.strata:
        stratum = Manifest(
            key=job.key, kind="stratum", name=part.stratum, arch=job.arch, artifacts=()
        )
        yield _meta(stratum, part.artifact, [content.artifact for content in part.contents])
    about = job.metadata
    itself = Manifest(
        key=job.key, kind="system", name=job.name, arch=job.arch, artifacts=(), metadata=about
    )
    names = [part.artifact for part in job.strata]
    yield _meta(itself, name, names, {"content-key": content_key})
    yield (
        "etc/os-release",
        f'NAME="Baserock"\nID=baserock\nPRETTY_NAME="{job.name}"\nVARIANT_ID={job.name}\n',
    )


def _manifests(workspace: Workspace, contents: Sequence[Content]) -> dict[str, Manifest]:
    names = {content.key: content.artifact for content in contents}
    workspace.store.use(names)
    found = dict(zip(names, workspace.store.manifests(names), strict=True))
    present = {key: manifest for key, manifest in found.items() if manifest is not None}
    if absent := tuple(key for key in names if key not in present):
        raise MachineFault(
            f"The artifact store has no {names[absent[0]]} ({absent[0]}), which the system needs",
            absent,
        )
    return present


def _meta(
    manifest: Manifest, artifact: str, contents: list[str], more: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Path and text of an artifact's metadata.

    It has no cache key, which would change with every input: systems with equal contents are equal.
    """
    about = {
        **manifest.metadata,
        **(more or {}),
        "artifact-name": artifact,
        "source-name": manifest.name,
        "kind": manifest.kind,
        "arch": manifest.arch,
        "contents": contents,
    }
    return f"baserock/{artifact}.meta", json.dumps(about, indent=2, sort_keys=True) + "\n"


def _write(tree: Unpacker, path: str, text: str, owner: str) -> None:
    data = text.encode()
    tree.put(Entry(path.encode(), archive.FILE, 0o644, len(data)), [data], owner)


def _integrate(
    job: Job,
    tree: Unpacker,
    rootfs: Path,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
) -> tuple[str, ...]:
    """Run ldconfig, if there is one, and the integration scripts, in byte order of their names.

    Returns the conditions that are unlike the usual ones.
    """
    names = sorted(
        path.rpartition(b"/")[2]
        for path in tree.files
        if path.rpartition(b"/")[0] == INTEGRATION.encode()
    )
    lists = []
    if ldconfig.needed(tree.files):
        lists.append(CommandList("ldconfig", ("ldconfig",)))
    for name in (name.decode("utf-8", "surrogateescape") for name in names):
        command = quote(f"/{INTEGRATION}/{name}")
        lists.append(CommandList(name, (command,), title=f"SYSTEM-INTEGRATION {name}"))
    if not lists:
        return ()
    # the rootfs is no overlay, and its files are listed as ever
    conditions = replace(conditions_of(job), reordered=False)
    mounts = ["--bind", str(rootfs), "/", *sandbox.KERNEL]
    if b"tmp" not in tree.links:  # on disk, so that a script does not fill memory
        place = rootfs.with_name("tmp")
        place.mkdir(exist_ok=True)
        place.chmod(0o1777)
        mounts += ["--bind", str(place), "/tmp"]
    environment = job.environment or _ENVIRONMENT
    clock = clock_ahead(conditions.ahead, mounts, environment, log, cancel)
    mounts += clock.mounts
    environment = {**environment, **clock.variables}
    text = script(job.name, PATH, lists)
    box = sandbox.Box(tuple(mounts), (), environment, "/", text, PATH, conditions=conditions)
    ours = [rootfs / name for name in ("proc", "dev", "tmp") if name.encode() not in tree.dirs]
    ended = sandbox.run(box, log, cancel, limits=limits, disk=rootfs)
    if ended.status:
        raise BuildFailed(
            f"{ended.list} failed with exit status {ended.status} in {job.name}",
            step="system-integration",
            command=ended.list,
        )
    for place in ours:  # mount points made by bwrap
        with suppress(OSError):
            place.rmdir()
    return conditions.changed(clock=clock is not REAL, jobs=False)
