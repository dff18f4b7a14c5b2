"""The search for names of what a toolchain was built with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import leaks
import pytest


@pytest.mark.parametrize(
    ("content", "what", "text"),
    [
        ("#!/tools/bin/sh\n", "the folder of stages 1 and 2", "/tools"),
        ("RUNPATH=/usr/lib:/tools/lib", "the folder of stages 1 and 2", "/tools"),
        ("cc='x86_64-bootstrap-linux-gnu-gcc'", "the target of stage 1", "-bootstrap-linux-gnu"),
        (
            "dir = /usr/lib/gcc/x86_64-linux-gnu/14",
            "a folder of the seed",
            "/lib/gcc/x86_64-linux-gnu",
        ),
        ("/usr/include/x86_64-linux-gnu", "a folder of the seed", "/include/x86_64-linux-gnu"),
        ("file /gcc.build/_build/x.c", "a build directory", "/gcc.build"),
        ("prefix=/glibc.inst/usr", "a build directory", "/glibc.inst"),
    ],
)
def test_leak_is_found(tmp_path: Path, content: str, what: str, text: str) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/file").write_bytes(b"\0" + content.encode() + b"\0")
    assert list(leaks.leaks(tmp_path)) == [("/usr/file", what, text)]


def test_interpreter_of_a_program_is_found(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text("int main(void) { return 0; }\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    flags = ["-Wl,--dynamic-linker=/tools/lib/ld.so", "-Wl,-rpath,/tools/lib"]
    subprocess.run(["gcc", *flags, "-s", "-o", tree / "program", source], check=True)
    assert ("/program", "the folder of stages 1 and 2", "/tools") in list(leaks.leaks(tree))


def test_names_and_links_are_searched(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "sh").symlink_to("/tools/bin/bash")
    assert [leak.path for leak in leaks.leaks(tmp_path)] == ["/sh", "/tools"]


def test_other_names_are_no_leaks(tmp_path: Path) -> None:
    text = "/usr/share/tools/x /toolset /usr/lib/gcc/x86_64-baserock-linux-gnu/14 a.build ../x.inst"
    (tmp_path / "file").write_text(text)
    (tmp_path / "empty").touch()
    assert not list(leaks.leaks(tmp_path))


def test_program_fails_with_the_leaks(tmp_path: Path) -> None:
    command = [sys.executable, str(leaks.__file__), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 0
    (tmp_path / "ldd").write_text("#! /tools/bin/bash\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        1,
        "/ldd: the folder of stages 1 and 2: /tools\n",
    )
