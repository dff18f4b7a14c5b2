"""Opens a shell in the sandbox of a chunk, to find out why the chunk does not build."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fabric.building import staging_area
from fabric.building.log import Log
from fabric.building.terminal import Terminal
from fabric.building.workspace import Workspace
from fabric.errors import FabricError
from fabric.host.cancel import CancelToken
from fabric.jobs import Job

#: The first terminal that a session opens controls it: for Ctrl-C, Ctrl-Z, and jobs.
_TAKE = 'exec "$@" <>/dev/console'


def shell(job: Job, workspace: Workspace, *, jobs: int, argv: Sequence[str] = ()) -> int:
    """Run ``argv``, else a shell, in the sandbox of a chunk; return its exit status.

    It has this process's standard files, but a terminal of its own instead of the user's.  The tree
    is that of the last attempt, if that failed on this machine; changes to it stay.  Otherwise the
    tree is fresh and no command has run.
    """
    if job.kind != "chunk":
        raise FabricError(f"{job.name} is a {job.kind}: only chunks are built in a sandbox")
    needed = {job.key, *(staged.key for staged in job.staged)}
    with workspace.using(needed), Log(Path(os.devnull)) as log:
        kept = workspace.take_failed(job.key)
        scratch = kept or workspace.build_scratch()
        try:
            area = staging_area.prepare(job, workspace, scratch, log, CancelToken(), jobs)
            return _run(area, list(argv), fresh=kept is None, jobs=jobs)
        finally:
            if kept is None:
                workspace.session.discard(scratch)
            else:
                workspace.keep_failed(job.key, scratch)


def _run(area: staging_area.StagingArea, argv: list[str], *, fresh: bool, jobs: int) -> int:
    if not argv:
        argv = ["sh", "-i"]
        state = "No command has run yet." if fresh else "This is how the failed attempt left it."
        print(
            f"{state}\nRun all steps:  sh {area.box.path}\n"
            f"Run one list:   sh {area.box.path} build-commands\nLeave:          exit",
            file=sys.stderr,
        )
    terminal = {"TERM": os.environ.get("TERM", "dumb"), "MAKEFLAGS": f"-j{jobs}"}
    with Terminal() as its:
        mounts = area.box.mounts
        if its.place is not None:
            mounts += ("--dev-bind", its.place, "/dev/console")
            argv = ["sh", "-c", _TAKE, "sh", *argv]
        environment = {**area.box.environment, **terminal}
        box = msgspec.structs.replace(area.box, environment=environment, mounts=mounts)
        with box.files() as files:
            return its.run(box.command(files, ["--new-session"], argv), files)
