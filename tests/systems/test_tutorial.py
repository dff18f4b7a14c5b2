"""The commands of the tutorial work in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from qemu import Machine
from systems_kit import ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def commands() -> list[str]:
    """The blocks of commands, but for those that activate the environment or start QEMU."""
    page = (ROOT / "docs/tutorial/your-own-system.md").read_text()
    found = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", page)
    blocks = [re.sub(r"(?m)^qemu.*\n", "", block) for language, block in found if not language]
    assert blocks[0] == ". distbuild/.venv/bin/activate\n"
    return blocks[1:]


def shared_cache(cache: Path, minimal: Built) -> None:
    """A cache with the artifacts of the minimal system, which a test may extend."""
    sources = cache / "trove/git/upstream"
    sources.mkdir(parents=True)
    (cache / "artifacts").symlink_to(minimal.cache / "artifacts")
    for repository in (minimal.cache / "trove/git/upstream").iterdir():
        if repository.name != "hello.git":
            (sources / repository.name).symlink_to(repository)


def test_tutorial_builds_boots_and_breaks_a_system(minimal: Built, tmp_path: Path) -> None:
    shared_cache(tmp_path / "cache", minimal)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/distbuild").symlink_to(ROOT)
    me = {
        f"GIT_{who}_{what}": "ann" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {
        **os.environ,
        **me,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FABRIC_CACHE": str(tmp_path / "cache"),
        "FABRIC_CONFIG": "/dev/null",
    }
    *built, broken = commands()
    script = "\n".join([*built, "cp greeter.img ..", f"{{ {broken}\n}} || echo exit $?"])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "greeter-x86_64 is built: " in said
    assert "hello failed: build-commands failed with exit status 2: make" in said
    assert done.stdout.endswith("exit 3\n"), said
    with Machine(tmp_path / "here/greeter.img") as machine:
        machine.wait_for(r"login: ", 600)
        machine.send("root")
        machine.wait_for(r"# ", 120)
        assert machine.run("hello", 60) == (0, "Hello from a system of my own")
