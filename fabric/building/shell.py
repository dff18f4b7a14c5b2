"""A shell inside the sandbox of a chunk, to see why it does not build."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fabric.building import area
from fabric.building.log import Log
from fabric.building.workspace import Workspace
from fabric.errors import FabricError
from fabric.jobs import Job


def shell(job: Job, workspace: Workspace, *, jobs: int, argv: Sequence[str] = ()) -> int:
    """Run ``argv``, else a shell, in the sandbox of a chunk; return its exit status.

    It has this process's standard input and output.  When the last attempt on this machine
    failed, its tree is as it was at that moment, and stays so as the shell leaves it; otherwise
    the tree is fresh and no command has run.
    """
    if job.kind != "chunk":
        raise FabricError(f"{job.name} is a {job.kind}: only chunks are built in a sandbox")
    with workspace.using(), Log(Path(os.devnull)) as log:
        kept = workspace.take_failed(job.key)
        scratch = kept or workspace.build_scratch()
        try:
            place = area.prepare(job, workspace, scratch, log, threading.Event(), jobs)
            return _run(place, list(argv), fresh=kept is None, jobs=jobs)
        finally:
            if kept is None:
                workspace.discard(scratch)
            else:
                workspace.keep_failed(job.key, scratch)


def _run(place: area.Area, argv: list[str], *, fresh: bool, jobs: int) -> int:
    if not argv:
        argv = ["sh", "-i"]
        state = "No command has run yet." if fresh else "This is how the failed attempt left it."
        print(
            f"{state}\nRun all steps:  sh {place.box.path}\n"
            f"Run one list:   sh {place.box.path} build-commands\nLeave:          exit",
            file=sys.stderr,
        )
    terminal = {"TERM": os.environ.get("TERM", "dumb"), "MAKEFLAGS": f"-j{jobs}"}
    box = msgspec.structs.replace(place.box, environment={**place.box.environment, **terminal})
    with box.files() as files:
        # No session of its own: a shell needs its terminal, for Ctrl-C and Ctrl-Z.
        return subprocess.call(box.command(files, [], argv), pass_fds=files)
