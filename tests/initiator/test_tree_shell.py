"""``shell`` in a built system, in artifacts that are staged together, and by key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from initiator_kit import Project
from terminals import Terminal

SYSTEM = "../systems/small.morph"
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
#: A static shell: the chunks bring all that a tree needs.
BUSYBOX = """\
mkdir -p $DESTDIR/bin $DESTDIR/usr/lib
cp $(command -v busybox) $DESTDIR/bin/busybox
for name in sh ls cat rm id; do ln -s busybox $DESTDIR/bin/$name; done
ln -s usr/lib $DESTDIR/lib"""
LIB = "mkdir -p $DESTDIR/lib; cp hello.txt $DESTDIR/lib/libone"


@pytest.fixture
def built(project: Project) -> Project:
    done = subprocess.run(["busybox", "true"], capture_output=True, check=False)
    assert done.returncode == 0, "the tests need the Debian package busybox-static"
    project.write(box=BUSYBOX, one=("box", LIB), two=("one", SHARE.format("two")))
    done_ = project.build()
    assert done_.returncode == 0, done_.stderr
    return project


def key_of(project: Project, name: str) -> str:
    listed = project.run("artifact", "list", name).stdout.splitlines()[1]
    return listed.split()[2]


def leftovers(project: Project) -> list[Path]:
    return list((project.cache / "work/tmp").glob("*/*"))


def test_shell_in_a_system_throws_changes_away(built: Project) -> None:
    change = "rm /usr/bin/two; echo new >/new; cat /new; id -u; exit 7"
    for what in (SYSTEM, "small", key_of(built, "small")):
        done = built.run("shell", what, "-c", change)
        assert (done.returncode, done.stdout) == (7, "new\n0\n"), done.stderr
        there = built.run("shell", what, "--", "ls", "/", "/usr/bin").stdout.split()
        assert "new" not in there
        assert "two" in there
    assert not leftovers(built)
    checked = built.run("cache", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_shell_in_a_system_is_isolated(built: Project) -> None:
    home = Path.home()
    done = built.run("shell", SYSTEM, "-c", f"ls {home}; ls /proc | cat; cat /proc/net/dev")
    assert "distbuild" not in done.stdout
    assert "eth0" not in done.stdout
    done = built.run("shell", SYSTEM, "-c", "echo 1 >/proc/sys/kernel/panic")
    assert done.returncode != 0


def test_shell_with_artifacts_merges_them(built: Project) -> None:
    """Also through a symlink of a lower one, in whatever order they are named."""
    for names in (["box", "one"], ["one", "box"], ["things"], [key_of(built, "one"), "box"]):
        words = [word for name in names for word in ("--with", name)]
        done = built.run("shell", *words, "-c", "cat /usr/lib/libone; exit 3")
        assert (done.returncode, done.stdout) == (3, "hello\n"), done.stderr
    done = built.run("shell", "--with", "box", "--with", "one", "--", "ls", "/usr/bin")
    assert done.returncode == 1
    assert "/usr/bin" in done.stderr
    done = built.run("shell", "--with", "box", "-c", 'echo "$1-$0"', "--", "a")
    assert done.stdout == "a-sh\n"


def test_shell_with_artifacts_that_are_not_built(built: Project) -> None:
    built.write(box=BUSYBOX, one=("box", LIB), two=("one", SHARE.format("2")), new="true")
    done = built.run("shell", "--with", "two", "--with", "things", "--with", "box", "-c", "true")
    assert done.returncode == 1
    build = "fabric-initiator build systems/small.morph"
    assert f"two: not in the store; run: {build} two\n" in done.stderr
    assert f"things: not in the store (2 of its 4 chunks); run: {build} things\n" in done.stderr
    done = built.run("shell", SYSTEM, "-c", "true")
    assert f"small: not built yet with these inputs; run: {build}\n" in done.stderr


def test_shell_needs_a_shell(built: Project) -> None:
    done = built.run("shell", "--with", "two", "-c", "true")
    assert done.returncode == 1
    assert "no shell can run there, because there is no /bin/sh; `--with` stages" in done.stderr


def test_shell_of_what_has_no_sandbox(built: Project) -> None:
    done = built.run("shell", "things")
    assert "`fabric-initiator shell --with things` opens a shell with its files" in done.stderr
    key = key_of(built, "things")
    done = built.run("shell", key)
    assert f"{key}: stratum things: the definitions here do not describe" in done.stderr
    assert f"`fabric-initiator shell --with {key}`" in done.stderr
    done = built.run("shell", "--with", "small")
    assert "small is a system; run: fabric-initiator shell small\n" in done.stderr
    done = built.run("shell")
    assert done.returncode == 1
    assert "name a chunk or a system, or artifacts by --with" in done.stderr


def test_shell_of_a_key_is_the_sandbox_of_its_chunk(built: Project) -> None:
    key = key_of(built, "two")
    done = built.run("shell", key, "--", "pwd")
    assert done.stdout.endswith("/two.build\n"), done.stderr
    broken = "echo trace >trace; false"
    built.write(box=BUSYBOX, one=("box", LIB), two=("one", broken))
    assert built.build().returncode == 3
    [failed] = (built.cache / "work/failed").iterdir()
    assert built.run("shell", failed.name[:8], "--", "cat", "trace").stdout == "trace\n"
    done = built.run("shell", key, "--", "pwd")
    assert f"{key}: chunk two: the definitions here do not describe a sandbox" in done.stderr


def test_shell_of_a_system_on_a_terminal(built: Project) -> None:
    environ = {**built.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PS1": "$ "}
    command = [sys.executable, "-m", "fabric.initiator", "shell", SYSTEM]
    terminal = Terminal(command, built.logs, environ)
    try:
        terminal.sees(lambda lines: bool(lines) and lines[-1].endswith("#"), "the prompt")
        terminal.types("echo in $PWD; tty\n")
        terminal.sees(lambda lines: "in /" in lines, "the output")
        terminal.types("exit 5\n")
        assert terminal.ends() == 5
        assert "Changes are thrown away at the end." in terminal.lines()
    finally:
        terminal.close()
    assert not leftovers(built)


def test_shell_of_a_damaged_system(built: Project) -> None:
    for blob in (built.cache / "artifacts/blobs").glob("*/*"):
        blob.chmod(0o600)
        blob.write_bytes(b"x" * blob.stat().st_size)
    shutil.rmtree(built.cache / "work/merged", ignore_errors=True)
    done = built.run("shell", SYSTEM, "-c", "true")
    assert done.returncode == 1
    assert re.search(r"blob \w+ is damaged", done.stderr)
