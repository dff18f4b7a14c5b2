"""200 trivial chunks through the whole fabric, against ninja with the same sandbox.

20 layers of 10 chunks, each depending on two of the layer before; two workers.  The last layer is
asked for, which needs all others.  ninja runs the same graph and commands, each step under
bubblewrap with the very options of our sandbox, with as many layers in its staging area: all that
a chunk depends on, and what that depends on.  Both do the work that is theirs: ninja looks for a
file, we split, archive, store, fsync and log.  Ours starts cold, with nothing built; the one
source is imported before.  Printed: both times, wall and CPU (user and system, of all processes),
their ratios, and the time of a second, fully cached build as a shell sees it.  Beside them,
`null_least`: a worker in Python that does only what it must, and what that costs.

It works in /var/tmp, because /tmp may be in memory, where fsync costs nothing.  Nothing is deleted
before the end: creating files soon after many were deleted is slow on some file systems.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench_kit import Chunk, write_definitions

from fabric.building import host_tools, sandbox, seccomp
from fabric.building.layers import plan_layers
from fabric.building.workspace import Workspace
from fabric.host.cancel import CancelToken
from fabric.jobs import Staged
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.resolve import Sources

LAYERS, WIDTH = 20, 10
BUILD = "echo step; mkdir -p $DESTDIR/out; echo {name} > $DESTDIR/out/{name}"


def parents(layer: int, column: int) -> tuple[str, ...]:
    """The two chunks of the layer before that a chunk depends on."""
    if layer == 0:
        return ()
    return tuple(f"n{layer - 1:02}-{(column + shift) % WIDTH}" for shift in (0, 3))


def names() -> list[tuple[str, tuple[str, ...]]]:
    """Every chunk with its dependencies."""
    return [
        (f"n{layer:02}-{column}", parents(layer, column))
        for layer in range(LAYERS)
        for column in range(WIDTH)
    ]


def staged(name: str, graph: dict[str, tuple[str, ...]]) -> list[str]:
    """All that is in a chunk's staging area, in the order of the graph."""
    found: set[str] = set()
    pending = [name]
    while pending:
        new = [one for one in graph[pending.pop()] if one not in found]
        found.update(new)
        pending += new
    return [one for one in graph if one in found]


def write_ninja(root: Path) -> None:
    """The same graph for ninja, and for `null_least`, each step in as many layers as ours."""
    root.mkdir()
    (root / "empty").mkdir()
    store = Store(str(root / "store"), root)
    with Workspace(root / "work", store, Sources(root / "trove", {}, None)) as workspace:
        tools = host_tools.root(workspace.layers, CancelToken())
    lines = ["rule step", "  command = $sandbox"]
    steps = []
    graph = dict(names())
    for name, depends in graph.items():
        for kind in ("build", "inst", "tmp"):
            (root / f"{name}.{kind}").mkdir()
        below = [root / f"{one}.inst" for one in staged(name, graph)] or [root / "empty"]
        count = len(plan_layers([Staged(path.name, "null-steps") for path in below]))
        mounts = [*tools, *sandbox.overlay(below[-count:], "--tmp-overlay", "/staging")]
        for kind, place in (("build", f"/staging/{name}.build"), ("tmp", "/tmp")):
            mounts += ["--bind", str(root / f"{name}.{kind}"), place]
        mounts += ["--bind", str(root / f"{name}.inst"), f"/staging/{name}.inst"]
        box = sandbox.Box(
            mounts=(*mounts, *sandbox.KERNEL),
            read_only=("/staging", "/"),
            environment={
                "PATH": f"/staging/usr/bin:{host_tools.PATH}",
                "DESTDIR": f"/staging/{name}.inst",
            },
            cwd=f"/staging/{name}.build",
            script="",
            path=f"/staging/{name}.steps",
        )
        command = ["sh", "-e", "-x", "-c", BUILD.format(name=name)]
        # their steps have /dev/null at 0
        words = box.command((0, 9), ["--new-session"], command)
        steps.append((name, depends, ["sh", "-c", 'exec "$@" 9<calls', "sh", *words]))
        needs = " ".join(f"{one}.inst/out/{one}" for one in depends)
        lines.append(f"build {name}.inst/out/{name}: step {needs}")
        lines.append(f"  sandbox = {shlex.join(words).replace('$', '$$')} 9<calls")
    (root / "calls").write_bytes(seccomp.program())
    (root / "build.ninja").write_text("\n".join(lines) + "\n")
    (root / "steps.json").write_text(json.dumps(steps))


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float  # user and system, of the command and all that it has waited for


def cost(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> Cost:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(wall, user + system)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--dir", default="/var/tmp", help="where to work (default %(default)s)")
    given = options.parse_args()
    initiator = str(Path(sys.executable).with_name("fabric-initiator"))
    costs: dict[str, list[Cost]] = {"ninja": [], "least": [], "fabric": [], "cached": []}
    with tempfile.TemporaryDirectory(prefix="null-steps-", dir=given.dir) as scratch:
        definitions = Path(scratch, "definitions")
        chunks = [Chunk(name, BUILD.format(name=name), depends) for name, depends in names()]
        system = str(write_definitions(definitions, "null-steps", chunks))
        for number in range(given.rounds):
            work = Path(scratch, str(number))
            logs = work / "logs"
            logs.mkdir(parents=True)
            for yardstick in ("ninja", "least"):
                write_ninja(work / yardstick)
            env = os.environ | {"FABRIC_CACHE": str(work / "cache"), "FABRIC_CONFIG": "/dev/null"}
            env.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles us anew each time
            cost([initiator, "show", system], logs, env)  # imports the source
            last = [name for name in dict(names()) if name.startswith(f"n{LAYERS - 1:02}")]
            build = [initiator, "build", system, *last, "--workers", "2"]
            costs["ninja"].append(cost(["ninja", "-j2"], work / "ninja"))
            program = str(Path(__file__).with_name("null_least.py"))
            costs["least"].append(cost([sys.executable, program, "."], work / "least", env))
            costs["fabric"].append(cost(build, logs, env))
            costs["cached"].append(min(cost(build, logs, env) for _ in range(3)))
            times = ", ".join(
                f"{name} {some[-1].wall:.2f} s (CPU {some[-1].cpu:.2f})"
                for name, some in costs.items()
            )
            print(f"round {number + 1}: {times}")
    steps = LAYERS * WIDTH
    print(f"{steps} null steps, 2 workers, best of {given.rounds}, ours beside ninja + bubblewrap:")
    for field, what in enumerate(("wall", "CPU")):
        best = {name: min(one[field] for one in some) for name, some in costs.items()}
        ours, ninja, least = best["fabric"], best["ninja"], best["least"]
        print(
            f"{what:4}  {ours:.2f} s ({1000 * ours / steps:.1f} ms a step), {ninja:.2f} s"
            f" ({1000 * ninja / steps:.1f} ms a step): ratio {ours / ninja:.2f};"
            f" the least in Python {least:.2f} s, {least / ninja:.2f}"
        )
    print(f"fully cached again: {min(costs['cached']).wall:.3f} s")


if __name__ == "__main__":
    main()
