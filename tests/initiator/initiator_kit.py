"""Small definitions in a folder, and the real commands run on them as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from small_definitions import lay_out, remember_host_tools, write_chunks
from terminals import Terminal

INITIATOR = [sys.executable, "-m", "fabric.initiator"]


#: Runs fabric-initiator with these arguments on a terminal.
OpenTerminal = Callable[..., Terminal]


class Project:
    """Definitions of one stratum whose chunks are built with the host's tools."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self.cache = cache
        self.logs = root / "here"
        self.logs.mkdir(parents=True)
        remember_host_tools(cache)
        self.source = root / "source"
        lay_out(root, self.source)
        self.children: list[subprocess.Popen[str]] = []

    def write(self, **chunks: str | tuple[str, str]) -> None:
        """One chunk for each argument: its install command, or (dependencies, command)."""
        write_chunks(self.root, self.source, chunks)

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "FABRIC_CACHE": str(self.cache), "FABRIC_CONFIG": "/dev/null"}

    def run(
        self,
        *args: str,
        timeout: float = 120,
        within: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, started by ``within``."""
        return subprocess.run(
            [*within, *INITIATOR, *args],
            cwd=self.logs,
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def build(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("build", "../systems/small.morph", *args)

    def start(
        self, *args: str, within: Sequence[str] = (), program: Sequence[str] = INITIATOR
    ) -> subprocess.Popen[str]:
        """Start a build in the background, by ``within``."""
        child = subprocess.Popen(
            [*within, *program, "build", "../systems/small.morph", *args],
            cwd=self.logs,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        return child

    def log(self, name: str) -> str:
        return (self.logs / f"build-step-{name}.log").read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """id -> name of processes of fabric: those with the test's cache in their environment."""
        mark = os.fsencode(f"FABRIC_CACHE={self.cache}\0")
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if mark in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
            except OSError:
                continue
        return found
