"""Opens a shell in the sandbox of a chunk, to find out why the chunk does not build."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from fabric.building import staging_area
from fabric.building.log import Log
from fabric.building.sandbox import Box
from fabric.building.terminal import Terminal
from fabric.building.workspace import Workspace
from fabric.errors import FabricError, command
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
    if job.mode == "import":
        raise FabricError(
            f"{job.name} is imported as it is, and has no sandbox; `{command('checkout')}` writes"
            " its files into a folder"
        )
    needed = {job.key, *(staged.key for staged in job.staged)}
    with workspace.using(needed), Log(Path(os.devnull)) as log:
        kept = workspace.take_failed(job.key)
        scratch = kept or workspace.build_scratch()
        area = None
        try:
            area = staging_area.prepare(job, workspace, scratch, log, CancelToken(), jobs)
            return _run(area, list(argv), fresh=_is_fresh(area, kept), jobs=jobs)
        finally:
            if area is not None and area.kept is not None:
                area.kept.put_back()
            if kept is None:
                workspace.session.discard(scratch)
            else:
                workspace.keep_failed(job.key, scratch)


def _is_fresh(area: staging_area.StagingArea, failed: Path | None) -> bool:
    """Whether no command has run in the tree."""
    return failed is None and not (area.kept is not None and area.kept.again)


def _run(area: staging_area.StagingArea, argv: list[str], *, fresh: bool, jobs: int) -> int:
    if not argv:
        argv = ["sh", "-i"]
        state = "No command has run yet." if fresh else "This is how the last attempt left it."
        print(
            f"{state}\nRun all steps:  sh {area.box.path}\n"
            f"Run one list:   sh {area.box.path} build-commands\nLeave:          exit",
            file=sys.stderr,
        )
    return enter(area.box, argv, {"MAKEFLAGS": f"-j{jobs}"})


def enter(box: Box, argv: Sequence[str], more: Mapping[str, str] | None = None) -> int:
    """Run ``argv`` in a sandbox, with this process's standard files; return its exit status.

    ``more``: variables besides those of the box.
    """
    environment = {**box.environment, "TERM": os.environ.get("TERM", "dumb"), **(more or {})}
    with Terminal() as its:
        mounts = box.mounts
        if its.place is not None:
            mounts += ("--dev-bind", its.place, "/dev/console")
            argv = ["sh", "-c", _TAKE, "sh", *argv]
        box = msgspec.structs.replace(box, environment=environment, mounts=mounts)
        with box.files() as files:
            return its.run(box.command(files, ["--new-session"], argv), files)
