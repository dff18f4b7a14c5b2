"""An image holds secrets of its system, so only its owner can read it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_image import SIZE, small


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_image_is_private_from_the_start(tmp_path: Path, kind: str) -> None:
    """The file is created with mode 0600: it holds host keys and password hashes."""
    rootfs, to = small().write(tmp_path / "rootfs.tar.zst"), tmp_path / f"disk.{kind}"
    calls = tmp_path / "calls"
    code = (
        "import sys; from pathlib import Path; from fabric.building.image import make_image;"
        "rootfs, to, kind = sys.argv[1:];"
        f"make_image(Path(rootfs), Path(to), size={SIZE}, format=kind)"
    )
    trace: list[str | Path] = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=chmod,fchmod,fchmodat,rename",
        "-o",
        calls,
    ]
    make: list[str | Path] = [sys.executable, "-c", code, rootfs, to, kind]
    subprocess.run([*trace, *make], check=True, umask=0o022)
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    made = [line for line in calls.read_text().splitlines() if f"/disk.{kind}" in line]
    assert len(made) == 1, made
    assert "rename(" in made[0]
