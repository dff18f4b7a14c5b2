"""Commands on hostile definitions run none of their programs outside a sandbox, and touch no file
outside the cache.

Each case writes definitions, runs the real program in their folder, and checks two files: the
canary, which a program of theirs would make, and a precious file that must not change.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from small_definitions import DEFAULTS

pytestmark = pytest.mark.long

#: The installed script: `python -m` itself imports from the current folder.
INITIATOR = str(Path(sys.executable).with_name("fabric-initiator"))
ANY = "ab" * 32
BUILD = ("build", "systems/s.morph")
SHOW = ("show", "systems/s.morph")
GRAPH = ("graph", "systems/s.morph", "--json")
IMPORT, UPDATE = ("lorry", "import", "x"), ("lorry", "update", "x")


class Trap:
    """Definitions of one chunk from ``upstream:x``, a canary and a precious file."""

    def __init__(self, top: Path) -> None:
        self.root = top / "definitions"
        self.canary = top / "canary"
        self.outside = top / "outside"
        self.precious = self.outside / "precious"
        self.cache = top / "cache"
        self.outside.mkdir()
        self.precious.write_text("precious")
        for folder in ("strata", "systems", "sources"):
            (self.root / folder).mkdir(parents=True)
        self.put("VERSION", "version: 8\n")
        self.put("DEFAULTS", DEFAULTS)
        strata = [{"name": "things", "morph": "strata/things.morph"}]
        self.morph("systems/s.morph", name="s", kind="system", arch="x86_64", strata=strata)
        self.morph("strata/thing.morph", name="thing", kind="chunk")
        self.source("upstream:x", "1")

    def put(self, path: str, content: str | bytes) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def program(self, path: str) -> Path:
        """A program that only makes the canary."""
        file = self.put(path, f"#!/bin/sh\ntouch '{self.canary}'\n")
        file.chmod(0o755)
        return file

    def python(self, path: str) -> Path:
        return self.put(path, f"open({str(self.canary)!r}, 'w').close()\n")

    def sdist(self, path: str) -> Path:
        """A source distribution whose setup.py makes the canary."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name, text in (
                ("x-1/setup.py", f"open({str(self.canary)!r}, 'w').close()\n"),
                ("x-1/PKG-INFO", "Metadata-Version: 1.0\nName: x\nVersion: 1\n"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
        return self.put(path, raw.getvalue())

    def morph(self, path: str, **content: object) -> None:
        self.put(path, json.dumps(content))

    def source(self, repo: str, ref: str, **more: object) -> None:
        """Set the repository of the chunk."""
        chunk: dict[str, object] = {
            "name": "thing",
            "morph": "strata/thing.morph",
            "repo": repo,
            "ref": ref,
        }
        chunk |= {"build-mode": "test", **more}
        self.morph("strata/things.morph", name="things", kind="stratum", chunks=[chunk])

    def lorry(self, **entry: object) -> None:
        self.morph("sources/x.lorry", x=entry)

    def debian(self, lock: str) -> None:
        self.lorry(type="debian-packages", packages=["zlib1g"], version="1")
        self.put("sources/x.lock", lock)

    def wheels(self, lock: str, *packages: str) -> None:
        chosen = list(packages or ("x",))
        self.lorry(type="pypi-wheels", packages=chosen, version="1", python="3.13")
        if lock:
            self.put("sources/x.lock", lock)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [INITIATOR, *args],
            cwd=self.root,
            env={
                **os.environ,
                "FABRIC_CACHE": str(self.cache),
                "FABRIC_CONFIG": os.devnull,
                "PIP_NO_INDEX": "1",  # the network is not needed
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def options_of_apt(trap: Trap) -> None:
    evil = trap.program("evil.sh")
    trap.put("evil.conf", f'#clear APT::Architectures;\nDir::Bin::dpkg "{evil}";\n')
    trap.debian(f"-c={trap.root}/evil.conf 1 amd64 {ANY} 5\n")


def another_cache_of_apt(trap: Trap) -> None:
    trap.debian(f"-oDir::Cache::pkgcache={trap.precious} 1 amd64 {ANY} 5\n")


def a_digest_that_is_a_path(trap: Trap) -> None:
    trap.debian(f"zlib1g 1 amd64 {trap.precious} 5\n")


def a_digest_that_leads_up(trap: Trap) -> None:
    (trap.cache / "trove/downloads").mkdir(parents=True)
    trap.debian(f"zlib1g 1 amd64 {'../' * 3}outside/precious 5\n")


def a_package_called_as_an_option(trap: Trap) -> None:
    trap.morph("sources/x.lorry", **{"upstream:-cx": {"type": "debian-source", "version": "1"}})


def modules_where_python_starts(trap: Trap) -> None:
    modules = ("json", "encodings", "site", "sitecustomize", "os", "pip/__init__", "pip/__main__")
    for name in (f"{module}.py" for module in modules):
        trap.python(name)
    trap.lorry(type="pypi", package="x", version="1", sha256=ANY)


def modules_where_pip_starts(trap: Trap) -> None:
    for name in ("runpy.py", "pip/__init__.py", "pip/__main__.py"):
        trap.python(name)
    trap.wheels(f"x 1 py3-none-any {ANY} 5\n")


def a_package_that_is_a_file_here(trap: Trap) -> None:
    trap.sdist("x.tar.gz")
    trap.wheels("", "x.tar.gz")


def a_wheel_that_is_a_url(trap: Trap) -> None:
    sdist = trap.sdist("x.tar.gz")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    trap.wheels(f"file://{sdist}#egg=x 1 py3-none-any {digest} 5\n")


def requirements_from_elsewhere(trap: Trap) -> None:
    sdist = trap.sdist("x.tar.gz")
    trap.put("r==1", f"{sdist}\n")
    trap.wheels(f"-r{trap.root}/r 1 py3-none-any {ANY} 5\n")


def a_helper_of_git(trap: Trap) -> None:
    trap.lorry(type="git", url=f"ext::{trap.program('evil.sh')}")


def a_helper_of_git_for_a_chunk(trap: Trap) -> None:
    trap.source(f"ext::{trap.program('evil.sh')}", "1")


def an_option_of_ssh(trap: Trap) -> None:
    trap.source(f"ssh://-oProxyCommand={trap.program('evil.sh')}/x", "1")


def an_option_of_git(trap: Trap) -> None:
    trap.lorry(type="git", url=f"--upload-pack={trap.program('evil.sh')}")


def a_hook_in_the_definitions(trap: Trap) -> None:
    """A bare repository among the definitions, around the lorry that refers to it."""
    git = ["git", "--git-dir", str(trap.root), "-c", "user.name=t", "-c", "user.email=t@invalid"]
    subprocess.run([*git, "init", "-q", "--bare", "-b", "main"], check=True)
    tree = subprocess.run([*git, "write-tree"], check=True, capture_output=True).stdout.strip()
    commit = subprocess.run(
        [*git, "commit-tree", "-m", "x", tree], check=True, capture_output=True
    ).stdout.strip()
    subprocess.run([*git, "update-ref", "refs/heads/main", commit], check=True)
    evil = trap.program("evil.sh")
    for setting in ("core.fsmonitor", "core.sshCommand", "uploadpack.packObjectsHook"):
        subprocess.run([*git, "config", setting, str(evil)], check=True)
    trap.source("upstream:x", "HEAD")
    trap.lorry(type="git", url="..")


def a_link_where_a_file_is_written(trap: Trap) -> None:
    archive = trap.sdist("x.tar.gz")
    for name in ("x.lorry.new", "x.lock.new", ".x.lorry.new"):
        (trap.root / "sources" / name).symlink_to(trap.precious)
    trap.lorry(type="tarball", url=f"file://{archive}", version="1")


def a_folder_of_lorries_elsewhere(trap: Trap) -> None:
    archive = trap.sdist("x.tar.gz")
    lorry = {"x": {"type": "tarball", "url": f"file://{archive}", "version": "1"}}
    trap.precious.rename(trap.outside / "x.lorry")
    trap.precious = trap.outside / "x.lorry"
    trap.precious.write_text(json.dumps(lorry))
    (trap.root / "sources").rmdir()
    (trap.root / "sources").symlink_to(trap.outside)


def a_lorry_that_is_a_pipe(trap: Trap) -> None:
    os.mkfifo(trap.root / "sources/x.lorry")


def a_lock_that_is_a_pipe(trap: Trap) -> None:
    trap.debian("")
    (trap.root / "sources/x.lock").unlink()
    os.mkfifo(trap.root / "sources/x.lock")


def a_lorry_without_end(trap: Trap) -> None:
    (trap.root / "sources/x.lorry").symlink_to("/dev/zero")


def a_log_that_is_a_link(trap: Trap) -> None:
    for name in ("build-step-thing-misc.log", ".build-step-logs-x.part"):
        (trap.root / name).symlink_to(trap.precious)
    source = trap.outside / "source"
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@invalid"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(source)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    trap.source(f"file://{source}", "main")


Prepare = Callable[[Trap], None]
#: Function that sets the trap, commands, and words of the last command's error ("": any).
CASES: list[tuple[Prepare, tuple[tuple[str, ...], ...], str]] = [
    (options_of_apt, (SHOW, GRAPH, BUILD, IMPORT), "x.lock:1: not a line of a lock file"),
    (another_cache_of_apt, (SHOW, IMPORT), "x.lock:1: not a line of a lock file"),
    (a_digest_that_is_a_path, (SHOW, IMPORT), "x.lock:1: not a line of a lock file"),
    (a_digest_that_leads_up, (SHOW, IMPORT), "x.lock:1: not a line of a lock file"),
    (a_package_called_as_an_option, (SHOW, UPDATE), "this is no name of a repository"),
    (modules_where_python_starts, (SHOW, BUILD, UPDATE), ""),
    (modules_where_pip_starts, (SHOW, BUILD, UPDATE), ""),
    (a_package_that_is_a_file_here, (SHOW, UPDATE), "'x.tar.gz' is not like NAME"),
    (a_wheel_that_is_a_url, (SHOW, IMPORT), "x.lock:1: not a line of a lock file"),
    (requirements_from_elsewhere, (SHOW, IMPORT), "x.lock:1: not a line of a lock file"),
    (a_helper_of_git, (SHOW, BUILD, IMPORT), "must be like a git URL"),
    (a_helper_of_git_for_a_chunk, (SHOW, BUILD), "is no URL of a git repository"),
    (an_option_of_ssh, (SHOW, BUILD), "is no URL of a git repository"),
    (an_option_of_git, (SHOW, IMPORT), "must be like a git URL"),
    (a_hook_in_the_definitions, (SHOW, BUILD), "is no git repository with a commit"),
    (a_link_where_a_file_is_written, (IMPORT, UPDATE), ""),
    (a_folder_of_lorries_elsewhere, (IMPORT, UPDATE), "leads out of the definitions"),
    (a_lorry_that_is_a_pipe, (SHOW, IMPORT), "it is not an ordinary file"),
    (a_lock_that_is_a_pipe, (SHOW, IMPORT), "it is not an ordinary file"),
    (a_lorry_without_end, (SHOW, IMPORT), "a symbolic link, and only files are read"),
    (a_log_that_is_a_link, (BUILD,), "cannot write the log there"),
]


@pytest.mark.parametrize(
    ("prepare", "commands", "words"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_definitions_touch_nothing_outside_the_cache(
    tmp_path: Path, prepare: Prepare, commands: tuple[tuple[str, ...], ...], words: str
) -> None:
    trap = Trap(tmp_path)
    prepare(trap)
    before = trap.precious.read_bytes()
    for command in commands:
        done = trap.run(*command)
        assert not trap.canary.exists(), f"{command} ran it"
        assert trap.precious.read_bytes() == before, f"{command} changed it"
        assert stat.S_ISREG(trap.precious.lstat().st_mode)
        assert "Traceback" not in done.stderr
        assert "unexpected" not in done.stderr
    if words:
        assert done.returncode == 1
        assert words in done.stderr
