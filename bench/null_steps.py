"""200 trivial chunks through the whole fabric, against ninja with the same sandbox.

20 layers of 10 chunks, each depending on two of the layer before; two workers.  ninja runs the
same graph and commands, each step under bubblewrap with the very options of our sandbox.  Both
do the work that is theirs: ninja looks for a file, we split, archive, store, fsync and log.  Ours
starts cold, with nothing built; the one source is imported before.  Printed: both times, their
ratio, and the time of a second, fully cached build as a shell sees it.

It works in /var/tmp, because /tmp may be in memory, where fsync costs nothing.  Nothing is deleted
before the end: creating files soon after many were deleted is slow on some file systems.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench_kit import Chunk, write_definitions

from fabric.building import host, sandbox
from fabric.building.workspace import Workspace
from fabric.trove.sources import Sources
from fabric.trove.store import Store

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


def write_ninja(root: Path) -> None:
    """The same graph for ninja, each step seeing what its two dependencies made."""
    root.mkdir()
    (root / "empty").mkdir()
    store = Store(str(root / "store"), root)
    with Workspace(root / "work", store, Sources(root / "trove", {}, None)) as workspace:
        tools = host.root(workspace.layers, threading.Event())
    lines = ["rule step", "  command = $sandbox"]
    for name, depends in names():
        for kind in ("build", "inst", "tmp"):
            (root / f"{name}.{kind}").mkdir()
        layers = [root / "empty", *(root / f"{one}.inst" for one in depends)]
        mounts = [*tools, *sandbox.overlay(layers, "--tmp-overlay", "/staging")]
        for kind, place in (("build", f"/staging/{name}.build"), ("tmp", "/tmp")):
            mounts += ["--bind", str(root / f"{name}.{kind}"), place]
        mounts += ["--bind", str(root / f"{name}.inst"), f"/staging/{name}.inst"]
        box = sandbox.Box(
            mounts=(*mounts, "--proc", "/proc", "--dev", "/dev"),
            read_only=("/staging", "/"),
            environment={
                "PATH": f"/staging/usr/bin:{host.PATH}",
                "DESTDIR": f"/staging/{name}.inst",
            },
            cwd=f"/staging/{name}.build",
            script="",
            path=f"/staging/{name}.steps",
        )
        command = ["sh", "-e", "-x", "-c", BUILD.format(name=name)]
        words = box.command(0, ["--new-session"], command)  # ninja's steps have /dev/null there
        needs = " ".join(f"{one}.inst/out/{one}" for one in depends)
        lines.append(f"build {name}.inst/out/{name}: step {needs}")
        lines.append(f"  sandbox = {shlex.join(words).replace('$', '$$')}")
    (root / "build.ninja").write_text("\n".join(lines) + "\n")


def timed(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    rounds = options.parse_args().rounds
    initiator = str(Path(sys.executable).with_name("fabric-initiator"))
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="null-steps-", dir="/var/tmp") as scratch:
        definitions = Path(scratch, "definitions")
        chunks = [Chunk(name, BUILD.format(name=name), depends) for name, depends in names()]
        system = str(write_definitions(definitions, "null-steps", chunks))
        for number in range(rounds):
            work = Path(scratch, str(number))
            logs = work / "logs"
            logs.mkdir(parents=True)
            write_ninja(work / "ninja")
            env = os.environ | {"FABRIC_CACHE": str(work / "cache"), "FABRIC_CONFIG": "/dev/null"}
            env.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles us anew each time
            timed([initiator, "show", system], logs, env)  # imports the source
            build = [initiator, "build", system, "--workers", "2"]
            times = {
                "ninja": timed(["ninja", "-j2"], work / "ninja"),
                "fabric": timed(build, logs, env),
                "cached": min(timed(build, logs, env) for _ in range(3)),
            }
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in times.items()))
            best = {name: min(best.get(name, value), value) for name, value in times.items()}
    steps = LAYERS * WIDTH
    print(
        f"{steps} null steps, 2 workers, best of {rounds}: fabric {best['fabric']:.2f} s"
        f" ({1000 * best['fabric'] / steps:.1f} ms a step), ninja + bubblewrap"
        f" {best['ninja']:.2f} s: ratio {best['fabric'] / best['ninja']:.2f}"
    )
    print(f"fully cached again: {best['cached']:.3f} s")


if __name__ == "__main__":
    main()
