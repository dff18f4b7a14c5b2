"""The staging area of a chunk: where everything is that its build sees, and what it may write.

In staging mode the root is the staged chunks, read-only, and in it are writable:

===============  ====================================================================
``/NAME.build``  the source tree, the working directory; changes go to scratch on disk
``/NAME.inst``   DESTDIR
``/tmp``, /dev   private; /tmp is on disk, so that a big build does not eat memory
===============  ====================================================================

Bootstrap and test chunks use this machine's tools: the root is its /usr and a little of its
/etc, and the staging area with NAME.build and NAME.inst in it is at ``/staging``, where
``$(dirname "$PWD")`` finds it.

Inside the source tree, as everywhere on overlayfs, renaming a directory that came with the
sources fails with EXDEV; ``mv`` copies then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.building import host, sandbox
from fabric.building.layers import LDCONFIG, LDCONFIG_RUBBISH, Layers
from fabric.building.log import Log
from fabric.building.merge import Merger
from fabric.building.steps import CommandList, script
from fabric.building.workspace import Workspace
from fabric.definitions.environment import SYSTEM_PATH
from fabric.errors import BuildFailed
from fabric.jobs import Job, Source

#: Where the staging area is when the root is this machine's.
_OUTSIDE = "/staging"
#: Only these see more than one of make's jobs.
_PARALLEL = ("pre-build-commands", "build-commands", "post-build-commands")


@dataclass(frozen=True, slots=True)
class Area:
    """A staging area ready to run in, with its writable parts in ``scratch``."""

    scratch: Path
    box: sandbox.Box

    @property
    def inst(self) -> Path:
        """DESTDIR as we see it."""
        return self.scratch / "inst"


def prepare(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancelled: threading.Event,
    jobs: int,
) -> Area:
    """Make the staging area of a chunk.

    ``scratch`` is fresh, or that of a failed attempt at the same job, which goes on living.
    BuildFailed when its chunks do not go together, MachineFault when something cannot be had.
    """
    lower, has = workspace.layers.stage(job.staged, cancelled)
    inside = job.mode == "staging"
    base = "" if inside else _OUTSIDE
    if inside and b"etc/ld.so.conf" in has and not LDCONFIG.isdisjoint(has):
        lower.append(_linked(lower, workspace.layers, log, cancelled))
    build, inst, steps = (f"{base}/{job.source_name}.{end}" for end in ("build", "inst", "steps"))
    up, work, destdir, tmp = (scratch / name for name in ("up", "work", "inst", "tmp"))
    for path in (up, work, destdir, tmp):
        path.mkdir(exist_ok=True)
    up.chmod(0o755)
    tmp.chmod(0o1777)
    mounts: list[str] = [] if inside else host.root(workspace.layers, cancelled)
    if lower:
        mounts += _overlay(lower, "--tmp-overlay", base or "/")
    elif inside:
        mounts += ["--tmpfs", "/"]
    if job.source is None:
        mounts += ["--bind", str(up), build]
    else:
        tree = _sources(job.source, workspace, cancelled)
        os.utime(up, ns=(0, tree.stat().st_mtime_ns))
        mounts += _overlay([tree], "--overlay", str(up), str(work), build)
    mounts += ["--bind", str(destdir), inst, "--bind", str(tmp), "/tmp"]
    mounts += ["--proc", "/proc", "--dev", "/dev"]
    environment = dict(job.environment, DESTDIR=inst)
    if not inside:
        own = environment.get("PATH", "").removesuffix(SYSTEM_PATH).split(":")
        environment["PATH"] = ":".join([*(base + path for path in own if path), host.PATH])
    text = script(job.name, steps, _lists(job, jobs))
    read_only = (base, "/") if lower and not inside else ("/",)
    return Area(scratch, sandbox.Box(tuple(mounts), read_only, environment, build, text, steps))


def _overlay(lower: list[Path], *how: str) -> list[str]:
    return [*(word for path in lower for word in ("--overlay-src", str(path))), *how]


def _lists(job: Job, jobs: int) -> list[CommandList]:
    count = job.max_jobs or jobs
    return [
        CommandList(name, commands, f"-j{count if name in _PARALLEL else 1}")
        for name, commands in job.commands
    ]


def _sources(source: Source, workspace: Workspace, cancelled: threading.Event) -> Path:
    """The tree of a source, with its submodules in their places."""
    top = workspace.sources.export(source)
    parts = list(_submodules(source, b""))
    if not parts:
        return top

    def make(into: Path) -> None:
        merger = Merger(into)
        merger.lay(top)
        for path, module in parts:
            merger.lay(workspace.sources.export(module), at=path)
        merger.finish(top.stat().st_mtime)

    names = ["sources", source.tree, [(path, module.tree) for path, module in parts]]
    return workspace.layers.made(names, make, cancelled)


def _submodules(source: Source, below: bytes) -> Iterator[tuple[bytes, Source]]:
    """All submodules, nested ones too, each before what is in it."""
    for name, module in source.submodules:
        path = below + name.encode("utf-8", "surrogateescape")
        yield path, module
        yield from _submodules(module, path + b"/")


def _linked(lower: list[Path], layers: Layers, log: Log, cancelled: threading.Event) -> Path:
    """One more layer: all that ldconfig changes in the staging area made of ``lower``."""

    def make(into: Path) -> None:
        work = layers.workspace.scratch()
        mounts = _overlay(lower, "--overlay", str(into), str(work), "/")
        mounts += ["--proc", "/proc", "--dev", "/dev"]
        environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
        path = "/dev/steps"
        text = script("the staging area", path, [CommandList("ldconfig", ("ldconfig",))])
        box = sandbox.Box(tuple(mounts), (), environment, "/", text, path)
        ended = sandbox.run(box, log, cancelled)
        layers.workspace.discard(work)
        if ended.status:
            raise BuildFailed(f"ldconfig failed in the staging area: exit status {ended.status}")
        (into / LDCONFIG_RUBBISH).unlink(missing_ok=True)

    names = ["ldconfig", [str(path.relative_to(layers.workspace.root)) for path in lower]]
    return layers.made(names, make, cancelled)
