"""What ldconfig makes of a staging area, as one more layer of it."""

from __future__ import annotations

import threading
from pathlib import Path

from fabric.building import sandbox
from fabric.building.layers import Layers
from fabric.building.log import Log
from fabric.building.steps import CommandList, script
from fabric.building.tree import copy, scan
from fabric.definitions.environment import SYSTEM_PATH
from fabric.errors import BuildFailed
from fabric.trove.files import scratch

#: ldconfig runs where there is the first, and one of the others.
CONFIGURATION = b"etc/ld.so.conf"
PROGRAMS = frozenset((b"sbin/ldconfig", b"usr/sbin/ldconfig"))
#: What it leaves behind that names inodes, so is never twice the same.
RUBBISH = "var/cache/ldconfig/aux-cache"
_STEPS = "/dev/steps"


def linked(lower: list[Path], layers: Layers, log: Log, cancelled: threading.Event) -> Path:
    """A layer with all that ldconfig changes in the staging area of the layers ``lower``.

    BuildFailed when it fails.
    """

    def make(into: Path) -> None:
        # In memory, because unmounting an overlay writes out the disk that its upper side is on.
        with scratch(Path("/dev/shm"), "fabric-ldconfig-") as memory:
            upper, work = memory / "upper", memory / "work"
            upper.mkdir()
            work.mkdir()
            mounts = sandbox.overlay(lower, "--overlay", str(upper), str(work), "/")
            mounts += sandbox.KERNEL
            text = script("the staging area", _STEPS, [CommandList("ldconfig", ("ldconfig",))])
            environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
            box = sandbox.Box(tuple(mounts), (), environment, "/", text, _STEPS)
            ended = sandbox.run(box, log, cancelled)
            if ended.status:
                raise BuildFailed(f"ldconfig failed in the staging area: status {ended.status}")
            (upper / RUBBISH).unlink(missing_ok=True)
            copy(scan(upper).values(), into)

    names = ["ldconfig", [str(path.relative_to(layers.workspace.root)) for path in lower]]
    return layers.made(names, make, cancelled)
