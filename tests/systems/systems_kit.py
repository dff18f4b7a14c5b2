"""The project's own systems, built by the real command from real sources."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fabric.host.locks import locked

ROOT = Path(__file__).parents[2]
MINIMAL = "systems/minimal-system-x86_64.morph"
#: What the example cluster deploys.
ASSEMBLED = "systems/build-system-debian-x86_64.morph"
#: What tests deploy: this one, unless `make test-deploy BUILD_SYSTEM=...` names another one.
BUILD_SYSTEM = os.environ.get("BUILD_SYSTEM", ASSEMBLED)
TOOLCHAIN = "systems/toolchain-x86_64.morph"


@dataclass(frozen=True)
class Built:
    """A system in the artifact store of ``cache``, built from a folder that holds its logs."""

    cache: Path
    logs: Path

    def run(
        self, *args: str, timeout: float = 3000, environ: Mapping[str, str] | None = None
    ) -> str:
        """The standard output of ``fabric-initiator`` with these arguments."""
        done = subprocess.run(
            [sys.executable, "-m", "fabric.initiator", *args],
            cwd=self.logs,
            env={**os.environ, "FABRIC_CACHE": str(self.cache), **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    def build(self, system: str, *parts: str) -> None:
        """Build a system of the project, or parts of it, when no other test process does."""
        with self.alone():
            self.run("build", str(ROOT / system), *parts)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other test processes from building in the cache.

        In an empty one, each of them would build everything.
        """
        return locked(self.cache / "tests.lock")


def user_cache() -> Path:
    """The cache of this user: tests use what is already built there."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FABRIC_CACHE") or f"{base}/distbuild").expanduser()
