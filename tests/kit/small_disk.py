"""A small disk, for tests of code on a full one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from children import child_environment


def on_small_disk(size: str, mount: Path, code: str) -> list[str]:
    """The lines that Python code prints; for it, ``mount`` is a small disk."""
    script = f'mount -t tmpfs -o size={size} none {mount} && exec "$0" -c "$1"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script),
            *(sys.executable, textwrap.dedent(code)),
        ],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class SmallDisk:
    """A small tmpfs at ``mount``, for processes that are run with `inside`."""

    def __init__(self, mount: Path, size: int) -> None:
        mount.mkdir(parents=True, exist_ok=True)
        script = f"mount -t tmpfs -o size={size} none {mount} && echo && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline(), f"no tmpfs can be mounted at {mount}"
        #: its path for this process
        self.path = Path(f"/proc/{self._holder.pid}/root") / mount.relative_to("/")

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` with that disk."""
        enter = [f"--target={self._holder.pid}", "--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *enter, f"--wdns={Path.cwd()}", *command]

    def fill(self) -> None:
        """Fill the disk."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass
        assert not shutil.disk_usage(self.path).free

    def free(self) -> None:
        """Free the disk."""
        (self.path / "ballast").unlink()

    def close(self) -> None:
        """Remove the disk."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
