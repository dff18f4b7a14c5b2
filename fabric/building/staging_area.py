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

from fabric.building import host_tools, ldconfig, sandbox, sourcetree
from fabric.building.build_script import PATH, CommandList, script
from fabric.building.log import Log
from fabric.building.workspace import Workspace
from fabric.definitions.environment import SYSTEM_PATH
from fabric.host.cancel import CancelToken
from fabric.jobs import Job

#: The staging area's path when the root is this machine's.
_OUTSIDE = "/staging"
#: Only these command lists get more than one make job.
_PARALLEL = ("pre-build-commands", "build-commands", "post-build-commands")


class StagingArea(msgspec.Struct, frozen=True):
    """A staging area that commands can run in; its writable parts are in ``scratch``."""

    scratch: Path
    box: sandbox.Box

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
) -> StagingArea:
    """Make the staging area of a chunk.

    ``scratch`` is fresh, or that of a failed attempt at the same job, whose tree is used again.
    ``limits`` apply to the chunks' own ldconfig, which runs meanwhile.
    BuildFailed if the staged chunks conflict, MachineFault if something is missing.
    """
    lower, has = workspace.layers.stage(job.staged, cancel, log.write)
    inside = job.mode == "staging"
    base = "" if inside else _OUTSIDE
    if inside and ldconfig.CONFIGURATION in has and not ldconfig.PROGRAMS.isdisjoint(has):
        lower.append(ldconfig.linked(lower, workspace.layers, log, cancel, limits))
    tree = sourcetree.prepare(job.source, workspace, scratch, cancel, log.write)
    build, inst = (f"{base}/{job.source_name}.{end}" for end in ("build", "inst"))
    for name in ("inst", "tmp"):
        sourcetree.made(scratch / name)
    (scratch / "tmp").chmod(0o1777)
    mounts: list[str] = [] if inside else host_tools.root(workspace.layers, cancel)
    if lower:
        mounts += sandbox.overlay(lower, "--tmp-overlay", base or "/")
    elif inside:
        mounts += ["--tmpfs", "/"]
    for path, target in ((tree.path, build), (scratch / "inst", inst), (scratch / "tmp", "/tmp")):
        mounts += ["--bind", str(path), target]
    mounts += sandbox.KERNEL
    environment = dict(job.environment, DESTDIR=inst)
    if not inside:
        own = environment.get("PATH", "").removesuffix(SYSTEM_PATH).split(":")
        environment["PATH"] = ":".join([*(base + path for path in own if path), host_tools.PATH])
    box = sandbox.Box(
        mounts=tuple(mounts),
        read_only=(base, "/") if lower and not inside else ("/",),
        environment=environment,
        cwd=build,
        script=script(job.name, PATH, _lists(job, jobs)),
        path=PATH,
        launcher=tree.launcher,
    )
    return StagingArea(scratch, box)


def _lists(job: Job, jobs: int) -> list[CommandList]:
    count = job.max_jobs or jobs
    return [
        CommandList(name, commands, f"-j{count if name in _PARALLEL else 1}")
        for name, commands in job.commands
    ]
