"""``init`` makes definitions that build at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from initiator_kit import INITIATOR
from small_definitions import git, remember_host_tools

from fabric.commands.init import FILES, SYSTEM

ROOT = Path(__file__).parents[2]


class Newcomer:
    """A user without settings, a git identity or a cache."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.definitions = home / "greeter"
        remember_host_tools(home / ".cache/distbuild")

    @property
    def environ(self) -> dict[str, str]:
        hidden = ("FABRIC_", "XDG_", "GIT_")
        kept = {name: one for name, one in os.environ.items() if not name.startswith(hidden)}
        return {**kept, "HOME": str(self.home)}

    def run(
        self, *args: str, cwd: Path | None = None, within: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*within, *INITIATOR, *args],
            cwd=cwd or self.definitions,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path / "home")


def test_what_it_prints_works_where_it_was_typed(newcomer: Newcomer) -> None:
    """Also with a program that no shell finds by its name, and a path that is relative."""
    program = os.path.relpath(Path(sys.executable).with_name("fabric-initiator"), newcomer.home)
    environ = {**newcomer.environ, "PATH": "/usr/bin:/bin"}

    def typed(line: str) -> str:
        command = ["sh", "-ec", line]
        done = subprocess.run(
            command, cwd=newcomer.home, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    _, *steps = typed(f"{shlex.quote(program)} init greeter").splitlines()
    assert "hello-system is built" in typed("\n".join(steps))


def test_it_builds_at_once_and_after_a_change(newcomer: Newcomer) -> None:
    done = newcomer.run("init", "greeter", cwd=newcomer.home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{newcomer.definitions}: definitions of a system with one chunk; README.md says more\n"
        f"  cd greeter\n  fabric-initiator build {SYSTEM}\n"
    )
    assert git(newcomer.definitions, "status", "--short") == ""
    assert set(git(newcomer.definitions, "ls-files").split()) == set(FILES)
    done = newcomer.run("build", SYSTEM)
    assert done.returncode == 0, done.stderr
    assert "hello-system is built: 3 built in " in done.stdout
    assert git(newcomer.definitions, "status", "--short") == "", "logs are ignored"
    newcomer.run("checkout", SYSTEM, "--to", "out")
    hello = newcomer.definitions / "out/usr/bin/hello"
    assert subprocess.check_output([hello], text=True) == "Hello from a system of my own\n"
    source = newcomer.definitions / "source/hello"
    source.write_text(source.read_text().replace("Hello", "Welcome"))
    git(newcomer.definitions, "commit", "-qam", "Another greeting")
    assert "3 built" in newcomer.run("build", SYSTEM).stdout
    newcomer.run("checkout", SYSTEM, "--to", "again")
    hello = newcomer.definitions / "again/usr/bin/hello"
    assert subprocess.check_output([hello], text=True) == "Welcome from a system of my own\n"


def test_commands_of_the_readme_work(newcomer: Newcomer) -> None:
    newcomer.home.joinpath("greeter").mkdir()
    assert newcomer.run("init").returncode == 0
    text = (newcomer.definitions / "README.md").read_text()
    lines = re.findall(r"(?m)^    fabric-initiator (.*?)(?: +#.*)?$", text)
    assert len(lines) == 8
    for line in lines:
        args = shlex.split(line)
        if args[0] == "shell":
            args += ["--", "true"]
        done = newcomer.run(*args)
        assert done.returncode == 0, done.stderr


def test_it_needs_no_network(newcomer: Newcomer) -> None:
    without = ("unshare", "--map-root-user", "--net")
    assert newcomer.run("init", "greeter", cwd=newcomer.home, within=without).returncode == 0
    done = newcomer.run("build", SYSTEM, within=without)
    assert done.returncode == 0, done.stderr


def test_commands_of_the_tutorial_work(newcomer: Newcomer) -> None:
    """Its outputs are those of the commands, too."""
    page = (ROOT / "docs/tutorial/definitions-of-your-own.md").read_text()
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", page)
    script = "\n".join(block for language, block in blocks if not language)
    name = {
        f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["bash", "-uc", script],
        cwd=newcomer.home,
        env={
            **newcomer.environ,
            **name,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for language, block in blocks:
        if language:
            assert block in done.stdout
    assert done.stdout.count("3 built in") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_ordinary_user_builds(newcomer: Newcomer) -> None:
    as_other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for folder in (newcomer.home, *newcomer.home.parents):
        if folder.owner() == "root" and not folder.stat().st_mode & 0o005 and folder != Path("/"):
            folder.chmod(0o755)
    for path in (newcomer.home, *newcomer.home.rglob("*")):
        os.chown(path, 65534, 65534)
    done = newcomer.run("init", "greeter", cwd=newcomer.home, within=as_other)
    assert done.returncode == 0, done.stderr
    done = newcomer.run("build", SYSTEM, within=as_other)
    assert done.returncode == 0, done.stderr


def test_it_keeps_what_is_there(newcomer: Newcomer) -> None:
    (newcomer.home / "file").write_text("x")
    before = sorted(newcomer.home.iterdir())
    done = newcomer.run("init", cwd=newcomer.home)
    assert done.returncode == 1
    assert done.stderr == "fabric-initiator: .: not empty; name a new or an empty folder\n"
    done = newcomer.run("init", "file", cwd=newcomer.home)
    assert (done.returncode, done.stderr) == (1, "fabric-initiator: file: Not a directory\n")
    assert sorted(newcomer.home.iterdir()) == before


def test_json_has_the_next_commands(newcomer: Newcomer) -> None:
    done = newcomer.run("init", "a b", "--json", cwd=newcomer.home)
    assert json.loads(done.stdout) == {
        "directory": str(newcomer.home / "a b"),
        "system": SYSTEM,
        "next": ["cd 'a b'", f"fabric-initiator build {SYSTEM}"],
    }
