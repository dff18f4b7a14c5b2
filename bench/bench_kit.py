"""What benchmarks build: definitions of a few small chunks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


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
    _git(source, "init", "-q", "-b", "main")
    (source / "README").write_text("nothing to see\n")
    _git(source, "add", ".")
    _git(source, "commit", "-q", "-m", "one file")
    ref = _git(source, "rev-parse", "HEAD")
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


def _git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@invalid"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
