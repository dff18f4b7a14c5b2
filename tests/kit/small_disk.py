"""A disk with hardly any room, for code that has to live with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path


def on_small_disk(size: str, mount: Path, code: str) -> list[str]:
    """The lines that Python code prints, run where ``mount`` is a disk of so much room."""
    script = f'mount -t tmpfs -o size={size} none {mount} && exec "$0" -c "$1"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script),
            *(sys.executable, textwrap.dedent(code)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class SmallDisk:
    """A tmpfs of so many bytes at ``mount``, seen by what is run with `inside`."""

    def __init__(self, mount: Path, size: int) -> None:
        mount.mkdir(parents=True, exist_ok=True)
        script = f"mount -t tmpfs -o size={size} none {mount} && echo && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline(), f"no tmpfs can be mounted at {mount}"
        #: where we see it
        self.path = Path(f"/proc/{self._holder.pid}/root") / mount.relative_to("/")

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` there, as the process it makes."""
        enter = [f"--target={self._holder.pid}", "--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *enter, f"--wdns={Path.cwd()}", *command]

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass
        assert not shutil.disk_usage(self.path).free

    def free(self) -> None:
        """Make room."""
        (self.path / "ballast").unlink()

    def close(self) -> None:
        """It is gone, with all that is on it."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
