"""Prepares the staging area of a chunk: the root and the writable directories of its build.

In staging mode the root has the staged chunks, read-only, and these writable directories:

===============  ====================================================================
``/NAME.build``  the source tree, the working directory; changes go to scratch on disk
``/NAME.inst``   DESTDIR
``/tmp``         private; on disk, so that a big build does not fill memory
``/dev/shm``     private; in memory
===============  ====================================================================

Bootstrap and test chunks use this machine's tools: the root has its /usr and a little of its /etc.
The staging area, with NAME.build and NAME.inst, is then at ``/staging``, where
``$(dirname "$PWD")`` finds it.

In a source tree that is an overlay, renaming a directory of the sources fails with EXDEV, as on any
overlayfs; ``mv`` then copies.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fabric.building import host_tools, ldconfig, personality, sandbox, sourcetree
from fabric.building.build_script import PATH, CommandList, phase_of, script
from fabric.building.clock import REAL, clock_ahead
from fabric.building.conditions import USUAL, conditions_of, reorder
from fabric.building.engine import Step
from fabric.building.kept_tree import CONFIGURE, KeptTree
from fabric.building.log import Log
from fabric.building.workspace import Workspace
from fabric.definitions.environment import FLAGS, SYSTEM_PATH
from fabric.host.cancel import CancelToken
from fabric.host.progress import Moved, unmoved
from fabric.jobs import Job

#: The staging area's path when the root is this machine's.
_OUTSIDE = "/staging"
#: Only these command lists get more than one make job.
_PARALLEL = ("pre-build-commands", "build-commands", "post-build-commands")


class StagingArea(msgspec.Struct, frozen=True):
    """A staging area that commands can run in; its writable parts are in ``scratch``."""

    scratch: Path
    base: str  # its path in the sandbox; "" if it is the root
    box: sandbox.Box
    jobs: int  # the most jobs of make; 0 if no command may have several
    kept: KeptTree | None = None  # of an edited chunk: put it back
    perturbed: tuple[str, ...] = ()  # as in `fabric.jobs.Manifest`
    outputs: tuple[str, ...] = ()  # of the staged chunks: `Manifest.input_digests`
    step: Step | None = None  # the same for an engine; None if only this machine can run it

    @property
    def inst(self) -> Path:
        """DESTDIR's path outside of the sandbox."""
        return self.scratch / "inst"


def prepare(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancel: CancelToken,
    jobs: int,
    limits: sandbox.Limits = sandbox.NO_LIMITS,
    *,
    whole: bool = True,
    moved: Moved = unmoved,
) -> StagingArea:
    """Make the staging area of a chunk.

    ``scratch`` is fresh, or that of a failed attempt at the same job, whose tree is used again.
    ``limits`` apply to the chunks' own ldconfig, which runs meanwhile; ``moved`` follows fetches.
    Unless ``whole``, the lists that an edited chunk need not run again are left out.
    BuildFailed if the staged chunks conflict, MachineFault if something is missing.
    """
    conditions = conditions_of(job)
    count = conditions.jobs_of(job, jobs)
    runs = any(commands for _, commands in job.commands)
    stack = workspace.layers.stage(job.staged, cancel, log.write, moved)
    lower, has = list(stack.paths), stack.has
    inside = job.mode == "staging"
    base = "" if inside else _OUTSIDE
    if inside and ldconfig.needed(has):
        lower.append(ldconfig.linked(stack, workspace.layers, log, cancel, limits))
    build, inst = (f"{base}/{job.source_name}.{end}" for end in ("build", "inst"))
    environment = dict(job.environment, DESTDIR=inst)
    for name in FLAGS & environment.keys():
        environment[name] = environment[name].replace("$PWD", build)
    if not inside:
        own = environment.get("PATH", "").removesuffix(SYSTEM_PATH).split(":")
        environment["PATH"] = ":".join([*(base + path for path in own if path), host_tools.PATH])
    if conditions.reordered and lower and sourcetree.made(scratch / "names"):
        reorder(lower, scratch / "names", cancel.check)
        lower.insert(0, scratch / "names")
    mounts: list[str] = [] if inside else host_tools.root(workspace.layers, cancel)
    if lower:
        mounts += sandbox.overlay(lower, "--tmp-overlay", base or "/")
    elif inside:
        mounts += ["--tmpfs", "/"]
    kept = skipped = None
    if job.source is not None and job.source.edit:
        kept = KeptTree(job, workspace, scratch)
        kept.take(cancel, log.write)
        tree = sourcetree.SourceTree(kept.path, ())
        skipped = None if whole or not kept.is_configured else CONFIGURE
        clock = REAL
    else:
        ahead = conditions.ahead if runs else 0
        clock = clock_ahead(ahead, [*mounts, *sandbox.KERNEL], environment, log, cancel)
        tree = sourcetree.prepare(
            job.source,
            workspace,
            scratch,
            cancel,
            log.write,
            reordered=conditions.reordered,
        )
    for name in ("inst", "tmp"):
        sourcetree.made(scratch / name)
    (scratch / "tmp").chmod(0o1777)
    for path, target in ((tree.path, build), (scratch / "inst", inst), (scratch / "tmp", "/tmp")):
        mounts += ["--bind", str(path), target]
    mounts += [*sandbox.KERNEL, *clock.mounts]
    box = sandbox.Box(
        mounts=tuple(mounts),
        read_only=(base, "/") if lower and not inside else ("/",),
        environment={**environment, **clock.variables},
        cwd=build,
        script=script(job.name, PATH, _lists(job, count, skipped)),
        path=PATH,
        launcher=tree.launcher,
        conditions=conditions,
    )
    parallel = any(commands for name, commands in job.commands if name in _PARALLEL)
    perturbed: tuple[str, ...] = ()
    if runs:
        other = parallel and count != (job.max_jobs or jobs)
        perturbed = conditions.changed(clock=clock is not REAL, jobs=other)
    step = None
    if inside and kept is None and conditions is USUAL and not personality.is_other(job.arch):
        step = Step(
            name=job.source_name,
            layers=tuple(lower),
            source=tree.origin,
            environment=environment,
            script=box.script,
            lists=tuple(name for name, commands in job.commands if commands),
        )
    count = count if parallel else 0
    return StagingArea(scratch, base, box, count, kept, perturbed, stack.outputs, step)


def _lists(job: Job, count: int, skipped: str | None) -> list[CommandList]:
    """The command lists with ``count`` jobs, without those of the phase ``skipped``."""
    # Commands that name the variable may pass it to other programs than make.
    shared = count > 1 and not any("MAKEFLAGS" in one for _, many in job.commands for one in many)
    return [
        CommandList(name, commands, f"-j{count}", shared=shared)
        if name in _PARALLEL
        else CommandList(name, commands, "-j1")
        for name, commands in job.commands
        if phase_of(name) != skipped
    ]
