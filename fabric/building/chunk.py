"""Builds a chunk: runs its commands in its staging area, or imports it, and packs its artifacts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from fabric.building import archive, sandbox, staging_area
from fabric.building.archive import Entry, Packed
from fabric.building.build_script import JOBSERVER, phase_of
from fabric.building.engine import Engine, Step, Unsuitable
from fabric.building.kept_tree import CONFIGURE, KeptTree
from fabric.building.log import Log
from fabric.building.tree import normalize, scan, with_links
from fabric.building.workspace import Workspace
from fabric.definitions.graph import Device
from fabric.definitions.splitting import UNMATCHED, split
from fabric.errors import BuildFailed, in_line
from fabric.host.cancel import CancelToken
from fabric.host.jobserver import joined
from fabric.host.progress import in_phase
from fabric.jobs import Job

#: Where integration scripts are in a system.
INTEGRATION = "baserock/system-integration"


class Built(NamedTuple):
    """The result of building a chunk."""

    archives: dict[str, Packed | None]  # by artifact; None for an empty one
    layer: Path | None  # a tree equal to all of them unpacked, if there is one
    perturbed: tuple[str, ...] = ()  # as in `Manifest`
    input_digests: tuple[str, ...] = ()  # as in `Manifest`


def build_chunk(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancel: CancelToken,
    *,
    jobs: int,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
    engine: Engine | None = None,
) -> Built:
    """Build a chunk in ``scratch``, an empty directory; after BuildFailed it has the build tree.

    The commands run on ``engine``, if it can run them.  The limit on time is for the commands and
    packing together, and for each of them if they run on different machines.
    """
    phase("fetch")
    perturbed: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    if job.mode == "import":
        limits = limits.begun()
        phase("install")
        inst = _imported(job, workspace, scratch, log, cancel, limits)
    else:
        moved = in_phase("fetch", phase)
        area = staging_area.prepare(
            job, workspace, scratch, log, cancel, jobs, limits, whole=False, moved=moved
        )
        if engine is None:
            limits = limits.begun()
        if area.kept is None:
            run(job, area, log, cancel, limits, phase, engine)
        else:
            area = _run_in_kept(job, workspace, area, area.kept, log, cancel, jobs, limits, phase)
        inst = area.inst
        perturbed, outputs = area.perturbed, area.outputs
    phase("store")
    limits = limits.begun()
    built = pack(job, inst, scratch, log, _checking(cancel, limits, "storing"))
    return built._replace(perturbed=perturbed, input_digests=outputs)


def _imported(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
) -> Path:
    """A directory with the installed source of an import chunk."""
    from fabric.building import import_mode  # few chunks need it

    inst = scratch / "inst"
    inst.mkdir()
    check = _checking(cancel, limits, "importing")
    import_mode.install(job, workspace, inst, log, cancel, check)
    return inst


def _checking(cancel: CancelToken, limits: sandbox.Limits, what: str) -> Callable[[], None]:
    """A function that raises once the build is cancelled, or past its limit on time."""

    def check() -> None:
        cancel.check()
        limits.check(what)

    return check


def _run_in_kept(
    job: Job,
    workspace: Workspace,
    area: staging_area.StagingArea,
    kept: KeptTree,
    log: Log,
    cancel: CancelToken,
    jobs: int,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
) -> staging_area.StagingArea:
    """Run the commands in the kept tree of an edited chunk; returns the area that they ran in.

    Configure lists may be unable to run twice in one tree: they run once more in a clean one.
    """
    try:
        run(job, area, log, cancel, limits, phase)
    except BuildFailed as error:
        if not kept.whole:
            raise
        if not (kept.again and phase_of(error.step) == CONFIGURE):
            kept.put_back()
            raise
        log.write(f"### edited: {error}: once more in a clean tree")
        kept.forget()
        workspace.session.discard(area.inst)
        scratch = area.scratch
        area = staging_area.prepare(job, workspace, scratch, log, cancel, jobs, limits)
        assert area.kept is not None
        return _run_in_kept(job, workspace, area, area.kept, log, cancel, jobs, limits, phase)
    kept.put_back()
    return area


def run(
    job: Job,
    area: staging_area.StagingArea,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
    engine: Engine | None = None,
) -> None:
    """Run the commands, on ``engine`` if it can.  BuildFailed names the list and the command that
    failed.
    """
    lists = dict(job.commands)
    if not any(lists.values()):
        return
    current = ""

    def started(list_: str) -> None:
        nonlocal current
        if list_ in lists and phase_of(list_) != current:
            if area.kept is not None and phase_of(list_) != CONFIGURE:
                area.kept.configured()
            current = phase_of(list_)
            phase(current)

    ended = None
    if engine is not None and area.step is not None:
        ended = _run_elsewhere(engine, area.step, area.inst, log, cancel, limits, started)
    elsewhere = ended is not None
    if ended is None:
        ended = _run_here(area, log, cancel, limits, started)
    if area.kept is not None:
        area.kept.whole = ended.status <= 128
    if ended.status:
        failure = _failure(lists, ended)
        failure.elsewhere = elsewhere
        raise failure


def _run_here(
    area: staging_area.StagingArea,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
    started: Callable[[str], None],
) -> sandbox.Ended:
    server = limits.jobserver if area.jobs else None
    with joined(server, area.scratch / "jobserver", area.jobs) as fifo:
        box = area.box
        if fifo is not None:
            box = replace(box, mounts=(*box.mounts, "--ro-bind", str(fifo), JOBSERVER))
        return sandbox.run(box, log, cancel, limits=limits, started=started, disk=area.scratch)


def _run_elsewhere(
    engine: Engine,
    step: Step,
    inst: Path,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
    started: Callable[[str], None],
) -> sandbox.Ended | None:
    """Run the commands on an engine; None if it cannot run them."""
    try:
        return engine.run(step, inst, log, cancel, limits, started)
    except Unsuitable as error:
        log.write(f"### This step runs on the worker, not on its engine: {error}")
        return None
    except BuildFailed as error:
        error.elsewhere = True
        raise


def _failure(lists: Mapping[str, Sequence[str]], ended: sandbox.Ended) -> BuildFailed:
    """The error for commands that failed."""
    commands = lists.get(ended.list, ())
    if not 0 < ended.number <= len(commands):
        return BuildFailed(f"The build spoiled its own report; its exit status: {ended.status}")
    command = commands[ended.number - 1]
    killed = f" (killed by signal {ended.status - 128})" if ended.status > 128 else ""
    return BuildFailed(
        f"{ended.list} failed with exit status {ended.status}{killed}: {title(command)}",
        step=ended.list,
        command=command,
    )


def title(command: str) -> str:
    """The first line of a command that is not a comment."""
    lines = [line.strip() for line in command.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), "".join(lines[:1]))


def pack(job: Job, inst: Path, scratch: Path, log: Log, check: Callable[[], None]) -> Built:
    """Split the files installed in ``inst`` by the job's rules, and archive them.

    ``check`` is called repeatedly, and may raise.
    """
    found = scan(inst, check)
    scripts = _add_integration(job, inst, found, log)
    for device in job.devices:
        _add_device(inst, found, device)
    texts = {path.decode("utf-8", "surrogateescape"): path for path in found}
    parts = split((text for text, path in texts.items() if path not in scripts), job.rules)
    left = _left_over(found, [texts[text] for text in parts.pop(UNMATCHED, ())])
    if left:
        raise BuildFailed(
            "No split rule matches these files, so they would be in no artifact:\n"
            + "\n".join(f"  /{in_line(path)}" for path in left[:20])
            + (f"\n  and {len(left) - 20} more" if len(left) > 20 else ""),
            step="install-commands",
        )
    packed: dict[str, Packed | None] = {}
    owners: dict[tuple[int, int], str] = {}  # of files with several names
    shared = False
    for name in job.artifacts:
        mine = {texts[text] for text in parts.get(name, ())}
        mine |= {path for path, artifact in scripts.items() if artifact == name}
        mine |= {parent for path in mine for parent in _parents(path)}
        entries = [found[path] for path in sorted(mine)]
        spill = scratch / f"artifact-{len(packed)}"
        packed[name] = archive.pack(with_links(entries), spill, check) if entries else None
        files = {entry.inode for entry in entries if entry.inode is not None}
        shared = shared or any(owners.setdefault(file, name) != name for file in files)
    if shared:  # a file with names in two artifacts becomes two files when unpacked
        return Built(packed, None)
    normalize(inst, found, check)
    return Built(packed, inst)


def _add_integration(job: Job, inst: Path, found: dict[bytes, Entry], log: Log) -> dict[bytes, str]:
    """Write the scripts that a system with the artifact runs; return path -> artifact."""
    scripts: dict[bytes, str] = {}
    for artifact, prefix, commands in job.integration:
        if artifact not in job.artifacts:
            log.write(
                f"warning: system-integration {prefix} is for {artifact}, which is no artifact"
                " of this chunk: it never runs"
            )
            continue
        for number, command in enumerate(commands):
            path = f"{INTEGRATION}/{prefix}-{artifact}-{number:04}".encode(
                "utf-8", "surrogateescape"
            )
            data = f"#!/bin/sh\nset -xeu\n{command}".encode("utf-8", "surrogateescape")
            _make_parents(path, inst, found)
            if path in found:
                raise BuildFailed(f"/{in_line(path)} exists already")
            file = inst / path.decode()
            with file.open("xb") as out:
                out.write(data)
            file.chmod(0o755)
            source = os.fsencode(file)
            found[path] = Entry(path, archive.FILE, 0o755, len(data), source=source)
            scripts[path] = artifact
    return scripts


def _add_device(inst: Path, found: dict[bytes, Entry], device: Device) -> None:
    path = device.filename.strip("/").encode("utf-8", "surrogateescape")
    if not path or {b"", b".", b".."} & set(path.split(b"/")):
        raise BuildFailed(f"devices: {device.filename!r} is no path of a file")
    if path in found:
        raise BuildFailed(f"devices: /{in_line(path)} exists already, as a file")
    _make_parents(path, inst, found)
    found[path] = Entry(
        path,
        archive.CHARACTER if device.type == "c" else archive.BLOCK,
        device.permissions,
        major=device.major,
        minor=device.minor,
        uid=device.uid,
        gid=device.gid,
    )


def _make_parents(path: bytes, inst: Path, found: dict[bytes, Entry]) -> None:
    """Make the directories above ``path`` in ``inst``, without following symlinks."""
    for parent in reversed(list(_parents(path))):
        if parent not in found:
            (inst / os.fsdecode(parent)).mkdir(mode=0o755)
            found[parent] = Entry(parent, archive.DIRECTORY, 0o755)
        elif found[parent].type != archive.DIRECTORY:
            raise BuildFailed(f"/{in_line(parent)} must be a directory")


def _left_over(found: dict[bytes, Entry], unmatched: list[bytes]) -> list[bytes]:
    """The unmatched paths, except for directories that contain a matched path."""
    taken = found.keys() - set(unmatched)
    needed = {parent for path in taken for parent in _parents(path)}
    return [path for path in unmatched if path not in needed]


def _parents(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path
