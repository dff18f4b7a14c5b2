"""Runs ldconfig over a staging area; the changes become one more layer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fabric.building import overlay, sandbox
from fabric.building.build_script import PATH, CommandList, script
from fabric.building.layers import Layers, Stack
from fabric.building.log import Log
from fabric.building.tree import copy, scan
from fabric.definitions.environment import SYSTEM_PATH
from fabric.errors import BuildFailed
from fabric.host.cancel import CancelToken

CONFIGURATION = b"etc/ld.so.conf"
PROGRAMS = frozenset((b"sbin/ldconfig", b"usr/sbin/ldconfig"))
#: A file of ldconfig that contains inode numbers, so it differs each time.
RUBBISH = b"var/cache/ldconfig/aux-cache"


def needed(paths: Collection[bytes]) -> bool:
    """Whether ldconfig runs in a tree with these files: they are its configuration and program."""
    return CONFIGURATION in paths and not PROGRAMS.isdisjoint(paths)


def linked(
    stack: Stack,
    layers: Layers,
    log: Log,
    cancel: CancelToken,
    limits: sandbox.Limits,
) -> Path:
    """A layer with all changes by ldconfig to the staging area of ``stack``.

    BuildFailed if it fails or exceeds a limit: a chunk may bring its own ldconfig.
    """
    session = layers.session

    def make(into: Path) -> None:
        scratch = session.scratch()
        try:
            (scratch / "up").mkdir()
            launcher = overlay.writable(stack.paths, session, scratch)
            mounts = ("--bind", str(scratch / "build"), "/", *sandbox.KERNEL)
            text = script("the staging area", PATH, [CommandList("ldconfig", ("ldconfig",))])
            environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
            box = sandbox.Box(mounts, (), environment, "/", text, PATH, launcher)
            ended = sandbox.run(box, log, cancel, limits=limits, disk=scratch)
            if ended.status:
                raise BuildFailed(f"ldconfig failed in the staging area: status {ended.status}")
            found = scan(scratch / "up", cancel.check, overlaid=True)
            found.pop(RUBBISH, None)
            copy(found.values(), into)
        finally:
            session.discard(scratch)

    return layers.made(["ldconfig", stack.outputs], make, cancel, log.write)
