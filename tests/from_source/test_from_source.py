"""The systems from source need nothing that they were built with, start, and build programs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leaks import leaks
from qemu import Machine
from systems_kit import ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(6 * 3600)]

BASE = "systems/base-system-x86_64.morph"
BUILD = "systems/build-system-x86_64.morph"
DEVEL = "systems/devel-system-x86_64.morph"

#: Names of folders that are in the source of a program, whatever builds it.
OWN = {
    ("libsystemd.so.0.40.0", "/lib/x86_64-linux-gnu"),
    ("libsystemd-shared-257.so", "/lib/x86_64-linux-gnu"),
}
#: A line for each program of the systems that a person would try first.
PROGRAMS = """\
bwrap --unshare-all --ro-bind / / --proc /proc echo inside
curl --version
git --version
ip addr
nginx -V
perl -e 'use POSIX; print POSIX::floor(4.2)'
python3 -c 'import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, zlib'
rsync --version
ssh -V
tar --version
"""


@pytest.fixture
def tree(built: Built, system: str) -> Path:
    """The files of a system."""
    tree = built.logs / "tree"
    built.build(system)
    built.run("checkout", str(ROOT / system), "--to", str(tree), "--force")
    return tree


@contextmanager
def started(built: Built, system: str, *options: str, memory: str = "1G") -> Iterator[Machine]:
    """A virtual machine of a system, with root logged in."""
    disk = built.logs / "disk.img"
    built.build(system)
    built.run("image", str(ROOT / system), "--to", str(disk), "--force", *options)
    with Machine(disk, memory=memory, network="user,model=virtio-net-pci") as machine:
        machine.wait_for(r"base login: ", 900)
        machine.send("root")
        machine.wait_for(r"# ", 120)
        yield machine


def needed(tree: Path) -> Iterator[tuple[str, str]]:
    """Each program or library, and a library or interpreter that it names."""
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    elf = [str(path) for path in files if path.read_bytes().startswith(b"\x7fELF")]
    assert len(elf) > 300
    command = ["readelf", "--wide", "--dynamic", "--program-headers", *elf]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    file = ""
    for line in said.splitlines():
        if line.startswith("File: "):
            file = line.removeprefix("File: ")
        elif match := re.search(r"\(NEEDED\).*\[(.*)\]|interpreter: (.*)\]", line):
            yield file, match[1] or match[2]


# devel-system has libtool and Meson, which know of folders of other systems.
@pytest.mark.parametrize("system", [BASE, BUILD])
def test_nothing_names_what_it_was_built_with(tree: Path) -> None:
    found = [leak for leak in leaks(tree) if (Path(leak.path).name, leak.text) not in OWN]
    assert not found


@pytest.mark.parametrize("system", [BASE, BUILD, DEVEL])
def test_each_library_that_is_needed_is_there(tree: Path) -> None:
    libraries = {path.name for path in tree.rglob("*.so*")}
    missing = {(file, name) for file, name in needed(tree) if Path(name).name not in libraries}
    assert not missing


def test_base_system_starts_and_works(built: Built) -> None:
    with started(built, BASE) as machine:
        assert machine.run("systemctl is-system-running --wait", 900) == (0, "running")
        assert machine.run("systemctl is-active ssh systemd-networkd", 60)[0] == 0
        for command in PROGRAMS.splitlines():
            code, said = machine.run(command, 300)
            assert code == 0, (command, said)
        # resolved by the machine's own resolver, and by the address that DHCP gave
        assert machine.run("getent hosts base", 60)[0] == 0
        assert "10.0.2." in machine.run("networkctl status --no-pager", 60)[1]
        machine.send("poweroff")
        machine.wait_end(300)


#: Definitions of a system that is built with the machine's own compiler, and their source.
HELLO = {
    "definitions/VERSION": "version: 8\n",
    "definitions/DEFAULTS": (
        "split-rules:\n  chunk:\n  - {artifact: -misc, include: ['.*']}\n"
        "  stratum:\n  - {artifact: -runtime, include: ['.*']}\n"
    ),
    "definitions/hello.morph": (
        "{name: hello, kind: system, arch: x86_64, strata: [{name: s, morph: strata/s.morph}]}\n"
    ),
    "definitions/strata/s.morph": (
        "name: s\nkind: stratum\nchunks:\n- {name: hello, morph: strata/hello.morph,"
        " repo: 'file:///root/hello', ref: master, build-mode: test}\n"
    ),
    "definitions/strata/hello.morph": (
        "name: hello\nkind: chunk\nbuild-commands:\n- gcc -O2 -o hello hello.c\n"
        'install-commands:\n- install -D hello "$DESTDIR"/usr/bin/hello\n'
    ),
    "hello/hello.c": (
        '#include <stdio.h>\n\nint main(void)\n{\n    return puts("hello") < 0;\n}\n'
    ),
}


def test_devel_system_builds_a_program_inside_itself(built: Built, tmp_path: Path) -> None:
    """By hand, and with this project."""
    for name, text in HELLO.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    options = ("--size", "6G", "--files", str(tmp_path))
    with started(built, DEVEL, *options, memory="2G") as machine:
        for command, printed in {
            "cd /root/hello && gcc -O2 -o /tmp/hello hello.c && /tmp/hello": "hello",
            "git init -q -b master && git add hello.c": "",
            "git -c user.name=r -c user.email=r commit -qm hello": "",
            "cd ../definitions && git init -q": "",
            "fabric-initiator build hello.morph >&2": None,
            "fabric-initiator checkout hello.morph --to /root/tree >&2": None,
            "/root/tree/usr/bin/hello": "hello",
        }.items():
            code, said = machine.run(command, 1200)
            assert code == 0, (command, said)
            assert printed in (None, said), command
        machine.send("poweroff")
        machine.wait_end(300)
