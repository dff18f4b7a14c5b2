"""A disk with hardly any room, for code that has to live with it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
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
