"""Builds one job: fetches, builds, splits and stores.

It is this package's interface for workers.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from fabric.building.archive import Packed
from fabric.building.chunk import build_chunk
from fabric.building.conditions import conditions_of
from fabric.building.engine import Engine
from fabric.building.log import Log
from fabric.building.sandbox import Limits
from fabric.building.system import build_system
from fabric.building.workspace import Workspace
from fabric.errors import (
    NO_ROOM,
    BuildFailed,
    DamagedError,
    MachineFault,
    SourceError,
    StoreError,
    command,
)
from fabric.host.cancel import CancelToken, abandonable
from fabric.host.progress import in_phase
from fabric.inputs import inputs
from fabric.jobs import COPIED, Artifact, Job, Manifest
from fabric.trove.artifacts.contents import output_of

if TYPE_CHECKING:
    from fabric.trove.artifacts.substituters import Substituters

#: The phase of waiting for another process of this machine that builds the same job.
ELSEWHERE = "built by another process"

#: Storing this many bytes may take longer than a cancelled build is allowed to take to end.
_LARGE = 16 << 20


def build(
    job: Job,
    workspace: Workspace,
    log: Log,
    cancel: CancelToken,
    *,
    jobs: int,
    timeout: float | None = None,
    log_limit: int | None = None,
    jobserver: Path | None = None,
    phase: Callable[[str], None] = lambda name: None,  # noqa: ARG005
    builder: str = "",
    substituters: Substituters | None = None,
    engine: Engine | None = None,
    stored: Callable[[Manifest], None] = lambda manifest: None,  # noqa: ARG005
) -> Manifest:
    """Build ``job`` and put it into the store; a job that is stored already is not built.

    Nor is one that ``substituters`` have: it is copied, and its log begins with `COPIED`.

    ``jobs`` is make's -j unless the chunk limits it; the builds of this machine share those of the
    `fabric.host.jobserver` at the socket ``jobserver``.  ``timeout`` in seconds of wall time and
    ``log_limit`` in bytes bound the commands.  ``phase`` is called with "copy", "fetch",
    "configure" ... "store", or ELSEWHERE.  ``builder`` names the worker in the manifest.  Commands
    of chunks run on ``engine``, if there is one that can run them.  The log is sealed before it is
    stored.  ``stored`` is called with the manifest if it was built here, and is now in the store.

    BuildFailed if it is the job's own fault (its tree then stays in ``failed/KEY``), MachineFault
    if it is this machine's or the store's, Cancelled within a fraction of a second after
    ``cancel`` is set.  None of them leaves a process behind.
    """
    try:
        with (
            workspace.using(),
            workspace.session.locked(f"job-{job.key}", cancel, lambda: phase(ELSEWHERE)),
        ):
            ready = workspace.store.manifest(job.key)
            if ready is not None:
                workspace.store.use([job.key])
                if ready.log is not None:  # another was faster: its log is the log of this step
                    with workspace.store.open(ready.log, job.key, cancel.check) as other:
                        log.copy(other)
                return ready
            if substituters is not None and not job.rebuild_of:
                ready = _substitute(job, workspace, substituters, log, cancel, phase)
                if ready is not None:
                    return ready
            limits = Limits(timeout, log_limit, jobserver)
            built, first = _build(job, workspace, log, cancel, jobs, limits, phase, builder, engine)
            if first:
                stored(built)
            return built
    except OSError as error:
        raise _fault(job, error) from error
    except DamagedError as error:
        raise MachineFault(f"{job.name}: {error}", error.keys) from error
    except (StoreError, SourceError) as error:
        raise MachineFault(f"{job.name}: {error}") from error


def _substitute(
    job: Job,
    workspace: Workspace,
    substituters: Substituters,
    log: Log,
    cancel: CancelToken,
    phase: Callable[[str], None],
) -> Manifest | None:
    """Copy a step from the first of ``substituters`` that has it; None if none does.

    The log names those that were of no use, and has the log of the build there.
    """
    phase("copy")
    troubles: list[str] = []
    found = substituters.find(job.key, cancel, troubles.append, in_phase("copy", phase))
    cancel.check()
    if found is not None:
        log.write(f"{COPIED}{found.url}")
    for trouble in troubles:
        log.write(f"### not copied from {trouble}")
    if found is None:
        return None
    manifest = found.manifest
    log.write(f"### built there in {manifest.seconds:.1f} s by {manifest.builder}:")
    _copy_log(manifest, found.files, log)
    phase("store")
    first = _store(manifest, found.files, workspace, cancel, found.data)
    if first and found.countersignature is not None:
        with contextlib.suppress(StoreError):  # the step is stored
            workspace.store.put_countersignature(job.key, found.countersignature)
    return manifest


def _copy_log(manifest: Manifest, files: Mapping[str, Path | bytes], log: Log) -> None:
    if manifest.log is None:
        return
    content = manifest.log.content
    file = files[manifest.log.sha256] if content is None else content
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        log.copy(opened)


def _build(
    job: Job,
    workspace: Workspace,
    log: Log,
    cancel: CancelToken,
    jobs: int,
    limits: Limits,
    phase: Callable[[str], None],
    builder: str,
    engine: Engine | None,
) -> tuple[Manifest, bool]:
    """The manifest, and whether it is the first of its key in the store."""
    began = time.monotonic()
    folder = conditions_of(job).folder
    scratch = workspace.session.scratch(folder) if folder else workspace.build_scratch()
    try:
        packed: dict[str, Packed | None] = {}
        layer: Path | None = None
        remarks: tuple[str, ...] = ()
        perturbed: tuple[str, ...] = ()
        digests: tuple[str, ...] = ()
        if job.kind == "chunk":
            packed, layer, perturbed, digests = build_chunk(
                job,
                workspace,
                scratch,
                log,
                cancel,
                jobs=jobs,
                limits=limits,
                phase=phase,
                engine=engine,
            )
        elif job.kind == "system":
            packed, remarks, perturbed, digests = build_system(
                job, workspace, scratch, log, cancel, limits, phase
            )
        else:
            phase("store")
            for name, contents in job.lists:
                log.write(f"{name}: {' '.join(content.artifact for content in contents)}")
        log.seal()
        manifest = replace(
            _manifest(job, packed, log, time.monotonic() - began, builder, remarks),
            perturbed=perturbed,
            input_digests=digests,
        )
        files: dict[str, Path | bytes] = {
            each.blob.sha256: each.content for each in packed.values() if each is not None
        }
        if manifest.log is not None and manifest.log.content is None:
            files[manifest.log.sha256] = log.path
        first = _store(manifest, files, workspace, cancel)
        # nothing is built with a rebuild, nor with what is not in the store
        if layer is not None and not job.rebuild_of and first:
            workspace.layers.adopt(job.key, layer, output_of(manifest))
    except BuildFailed as error:
        # an engine's build tree is lost; that of an edit is kept for the next build
        if error.elsewhere or (job.source is not None and job.source.edit):
            workspace.session.discard(scratch)
            raise
        kept = workspace.keep_failed(job.key, scratch)
        log.write(f"The build tree is kept on {os.uname().nodename}, in {kept}")
        raise
    except BaseException:
        workspace.session.discard(scratch)
        raise
    workspace.forget_failed(job.key)
    if folder:
        workspace.session.discard(scratch)
    else:
        workspace.recycle(scratch)
    return manifest, first


def _store(
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    workspace: Workspace,
    cancel: CancelToken,
    sealed: bytes = b"",
) -> bool:
    """Store the result, and return whether it was the first; ``sealed`` as for `Store.put`.

    Cancelled during a large upload, which then goes on in its thread: it may succeed, and otherwise
    leaves no manifest.
    """
    if sum(blob.size for blob in manifest.blobs()) < _LARGE:
        return workspace.store.put(manifest, files, sealed)
    return abandonable(lambda _: workspace.store.put(manifest, files, sealed), cancel, "storing")


def _manifest(
    job: Job,
    packed: dict[str, Packed | None],
    log: Log,
    seconds: float,
    builder: str,
    remarks: tuple[str, ...],
) -> Manifest:
    lists = dict(job.lists)
    artifacts = []
    for name in job.artifacts:
        archive = packed.get(name)
        artifacts.append(
            Artifact(name, archive.blob if archive is not None else None, lists.get(name, ()))
        )
    return Manifest(
        key=job.key,
        kind=job.kind,
        name=job.name,
        arch=job.arch,
        artifacts=tuple(artifacts),
        log=log.blob(),
        log_name=job.log,
        metadata=job.metadata,
        staged=tuple(staged.key for staged in job.staged),
        inputs=inputs(job),
        seconds=seconds,
        builder=builder,
        built=time.time(),
        rebuild_of=job.rebuild_of,
        remarks=remarks,
    )


def _fault(job: Job, error: OSError) -> MachineFault:
    where = f" ({error.filename})" if error.filename else ""
    text = f"{job.name}: {error.strerror or error}{where}"
    if error.errno in NO_ROOM:
        text += f": the disk is full; make room on it, for example with `{command('gc')}`"
    return MachineFault(text)
