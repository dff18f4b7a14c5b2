"""200 trivial chunks through the whole fabric, against ninja with the same sandbox.

20 layers of 10 chunks, each depending on two of the layer before; two workers.  ninja runs the
same graph with each step under bubblewrap with the options of our sandbox.  Both do the work
that is theirs: ninja touches a file, we split, archive, store and log.  Printed: both times,
their ratio, and the time of a second, fully cached build as a shell sees it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, WIDTH = 20, 10
BUILD = "echo step; mkdir -p $DESTDIR/out; echo {name} > $DESTDIR/out/{name}"
#: The options our sandbox starts with, for a chunk that is built with the host's tools.
SANDBOX = (
    "bwrap --unshare-all --unshare-user --die-with-parent --new-session --as-pid-1 --clearenv"
    " --uid 0 --gid 0 --hostname localhost --cap-drop ALL --tmpfs / --ro-bind /usr /usr"
    " --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64"
    " --ro-bind-try /etc/alternatives /etc/alternatives"
    " --ro-bind-try /etc/ld.so.cache /etc/ld.so.cache {staged}"
    " --bind {out}.build /staging/step.build --bind {out}.inst /staging/step.inst"
    " --bind {out}.tmp /tmp --proc /proc --dev /dev --remount-ro / --chdir /staging/step.build"
)


def parents(layer: int, column: int) -> list[str]:
    """The two chunks of the layer before that a chunk depends on."""
    if layer == 0:
        return []
    return [f"n{layer - 1:02}-{(column + shift) % WIDTH}" for shift in (0, 3)]


def names() -> list[tuple[str, list[str]]]:
    """Every chunk with its dependencies."""
    return [
        (f"n{layer:02}-{column}", parents(layer, column))
        for layer in range(LAYERS)
        for column in range(WIDTH)
    ]


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@invalid"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write_definitions(root: Path) -> None:
    """200 chunks of one tiny repository, built with the host's tools."""
    source = root / "source"
    source.mkdir(parents=True)
    git(source, "init", "-q", "-b", "main")
    (source / "README").write_text("nothing to see\n")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "one file")
    ref = git(source, "rev-parse", "HEAD")
    for folder in ("strata/null", "systems"):
        (root / folder).mkdir(parents=True)
    (root / "VERSION").write_text("version: 8\n")
    specs = []
    for name, depends in names():
        (root / f"strata/null/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- {BUILD.format(name=name)}\n"
        )
        specs.append(
            f"- name: {name}\n  morph: strata/null/{name}.morph\n  repo: file://{source}\n"
            f"  ref: {ref}\n  build-mode: test\n  build-depends: [{', '.join(depends)}]\n"
        )
    (root / "strata/null.morph").write_text(
        "name: null-steps\nkind: stratum\nchunks:\n" + "".join(specs)
    )
    (root / "systems/null.morph").write_text(
        "name: null-system\nkind: system\narch: x86_64\nstrata:\n"
        "- name: null-steps\n  morph: strata/null.morph\n"
    )


def write_ninja(root: Path) -> None:
    """The same graph for ninja, each step seeing what its two dependencies made."""
    root.mkdir()
    (root / "empty").mkdir()
    command = SANDBOX.format(staged="$staged --tmp-overlay /staging", out=f"{root}/$out")
    lines = [
        "rule step",
        f"  command = {command} sh -e -x -c 'echo step; echo $out > ../step.inst/$out'"
        " && touch $out",
    ]
    for name, depends in names():
        for kind in ("build", "inst", "tmp"):
            (root / f"{name}.{kind}").mkdir()
        layers = [f"{root}/empty", *(f"{root}/{one}.inst" for one in depends)]
        lines.append(f"build {name}: step {' '.join(depends)}")
        lines.append(f"  staged = {' '.join(f'--overlay-src {layer}' for layer in layers)}")
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
    with tempfile.TemporaryDirectory(prefix="null-steps-") as scratch:
        work = Path(scratch)
        definitions = work / "definitions"
        write_definitions(definitions)
        for number in range(rounds):
            ninja = work / "ninja"
            write_ninja(ninja)
            logs = work / "logs"
            logs.mkdir()
            env = os.environ | {"FABRIC_CACHE": str(work / "cache"), "FABRIC_CONFIG": "/dev/null"}
            build = [initiator, "build", str(definitions / "systems/null.morph"), "--workers", "2"]
            times = {
                "ninja": timed(["ninja", "-j2"], ninja),
                "fabric": timed(build, logs, env),
                "cached": min(timed(build, logs, env) for _ in range(3)),
            }
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in times.items()))
            best = {name: min(best.get(name, value), value) for name, value in times.items()}
            for folder in (ninja, logs, work / "cache"):
                shutil.rmtree(folder)
    steps = LAYERS * WIDTH
    print(
        f"{steps} null steps, 2 workers, best of {rounds}: fabric {best['fabric']:.2f} s"
        f" ({1000 * best['fabric'] / steps:.1f} ms a step), ninja + bubblewrap"
        f" {best['ninja']:.2f} s: ratio {best['fabric'] / best['ninja']:.2f}"
    )
    print(f"fully cached again: {best['cached']:.3f} s")


if __name__ == "__main__":
    main()
