"""Definitions of one stratum whose chunks are built with this machine's tools."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

from fabric.building.host_tools import host_tools

SYSTEM = "systems/small.morph"
DEFAULTS = """\
split-rules:
  chunk:
  - {artifact: -bins, include: ['(usr/)?s?bin/.*']}
  - {artifact: -misc, include: ['.*']}
  stratum:
  - {artifact: -runtime, include: ['.*']}
"""


def git(where: Path, *command: str) -> str:
    """The output of git, run with a user name."""
    me = ["-c", "user.name=t", "-c", "user.email=t@invalid"]
    done = subprocess.run(
        ["git", *me, *command], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout


def lay_out(root: Path, source: Path) -> None:
    """Make the folders, the system and, if it is missing, the repository of the chunks."""
    for folder in ("strata", "systems"):
        (root / folder).mkdir(parents=True)
    (root / "VERSION").write_text("version: 8\n")
    (root / "DEFAULTS").write_text(DEFAULTS)
    (root / SYSTEM).write_text(
        "name: small\nkind: system\narch: x86_64\nstrata:\n"
        "- name: things\n  morph: strata/things.morph\n"
    )
    if not source.exists():
        source.mkdir()
        (source / "hello.txt").write_text("hello\n")
        git(source, "init", "-q", "-b", "main")
        git(source, "add", ".")
        git(source, "commit", "-qm", "first")


def write_chunks(root: Path, source: Path, chunks: dict[str, str | tuple[str, str]]) -> None:
    """Write a chunk for each name: its install command, or (dependencies, command)."""
    specs = []
    for name, value in chunks.items():
        depends, command = value if isinstance(value, tuple) else ("", value)
        (root / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- |\n"
            + "".join(f"  {line}\n" for line in command.splitlines())
        )
        specs.append(
            f"- name: {name}\n  morph: strata/{name}.morph\n  repo: file://{source}\n"
            f"  ref: main\n  build-mode: test\n  build-depends: [{depends}]\n"
        )
    (root / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nchunks:\n" + "".join(specs)
    )


@functools.cache
def _host_tools() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "host-tools.json")
        host_tools(file)
        return file.read_bytes()


def remember_host_tools(cache: Path) -> None:
    """A new cache does not read all headers and libraries of this machine anew: that takes long."""
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "host-tools.json").write_bytes(_host_tools())
