"""The digest of a machine's tools: it follows all that a compiler reads, and is quick."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.building import host_tools as module
from fabric.building.host_tools import host_tools
from fabric.host.files import sealed


class Machine:
    """A small machine: a tool, headers, a compiler and libraries."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "cache/digests"
        for folder in ("bin", "include/sys", "include/empty", "gcc/14/include", "lib/deep"):
            (root / folder).mkdir(parents=True)
        self.write("bin/sh", "#!one")
        self.write("bin/unknown", "one")
        self.write("include/stdio.h", "one")
        self.write("include/sys/types.h", "one")
        self.write("gcc/14/include/stddef.h", "one")
        self.write("gcc/14/crtbegin.o", "one")
        self.write("lib/crt1.o", "one")
        self.write("lib/libc.so.6", "one")
        self.write("lib/libm.a", "one")
        self.write("lib/data.txt", "one")
        self.write("lib/deep/libblas.so.3", "one")
        (root / "lib/libc.so").symlink_to("libc.so.6")
        (root / "lib/libblas.so.3").symlink_to("deep/libblas.so.3")
        (root / "lib/broken.so").symlink_to("/nowhere/broken.so")
        (root / "include/link.h").symlink_to("../include/sys/types.h")

    def write(self, name: str, text: str) -> None:
        """Replace a file as dpkg does, by another one."""
        fresh = self.root / f"{name}.dpkg-new"
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.rename(self.root / name)

    def digest(self) -> str:
        """The digest with the record of the last call, which must be that without a record."""
        found = host_tools(self.record)
        assert found == host_tools(self.root / f"cache/{time.monotonic_ns()}")
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(module, "PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "_TREES", tuple(f"{tmp_path}/{one}" for one in ("include", "g*c")))
    monkeypatch.setattr(module, "_LIBRARIES", (f"{tmp_path}/lib",))
    return made


CHANGES: dict[str, Callable[[Machine], object]] = {
    "tool": lambda machine: machine.write("bin/sh", "#!two"),
    "tool in place": lambda machine: (machine.root / "bin/sh").write_text("#!two, longer"),
    "header": lambda machine: machine.write("include/stdio.h", "two"),
    "deep header": lambda machine: machine.write("include/sys/types.h", "two"),
    "new header": lambda machine: machine.write("include/empty/new.h", "new"),
    "header without content": lambda machine: machine.write("include/empty/new.h", ""),
    "header gone": lambda machine: (machine.root / "include/stdio.h").unlink(),
    "header renamed": lambda machine: (machine.root / "include/stdio.h").rename(
        machine.root / "include/stdlib.h"
    ),
    "header of the compiler": lambda machine: machine.write("gcc/14/include/stddef.h", "two"),
    "start file of the compiler": lambda machine: machine.write("gcc/14/crtbegin.o", "two"),
    "start file": lambda machine: machine.write("lib/crt1.o", "two"),
    "shared library": lambda machine: machine.write("lib/libc.so.6", "two"),
    "static library": lambda machine: machine.write("lib/libm.a", "two"),
    "library elsewhere": lambda machine: machine.write("lib/deep/libblas.so.3", "two"),
    "link": lambda machine: _relink(machine.root / "lib/libc.so", "libm.a"),
}


def _relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize("change", CHANGES)
def test_host_tools_digest_follows(machine: Machine, change: str) -> None:
    first = machine.digest()
    assert len(first) == 64
    CHANGES[change](machine)
    assert machine.digest() != first


@pytest.mark.parametrize("name", ["bin/unknown", "lib/data.txt", "lib/deep/libother.so"])
def test_host_tools_digest_ignores(machine: Machine, name: str) -> None:
    first = machine.digest()
    machine.write(name, "two")
    assert machine.digest() == first


def test_host_tools_digest_is_that_of_the_contents(machine: Machine) -> None:
    """A machine that has been upgraded and downgraded again has the same keys."""
    first = machine.digest()
    machine.write("include/stdio.h", "two")
    assert machine.digest() != first
    machine.write("include/stdio.h", "one")
    assert machine.digest() == first


def test_host_tools_digest_survives_a_damaged_record(machine: Machine) -> None:
    first = machine.digest()
    whole = machine.record.read_bytes()
    for number in range(0, len(whole), 7):  # a hex digit may become another
        damaged = bytearray(whole)
        damaged[number] ^= 1 if number % 2 else 0x80
        machine.record.write_bytes(damaged)
        assert host_tools(machine.record) == first
    for content in (
        b"",
        sealed(b'{"/bin/sh": ["1 2", "ab"]}'),
        sealed(b'{"files": 1}'),
    ):
        machine.record.write_bytes(content)
        assert host_tools(machine.record) == first


def test_host_tools_digest_with_files_that_cannot_be_read(machine: Machine) -> None:
    os.mkfifo(machine.root / "include/pipe.h")
    (machine.root / "include/circle.h").symlink_to("circle.h")
    (machine.root / "include/\udcff").mkdir()
    machine.write("include/\udcff/\udcff.h", "one")
    first = machine.digest()
    assert machine.digest() == first
    machine.write("include/\udcff/\udcff.h", "two")
    assert machine.digest() != first


def test_host_tools_of_this_machine_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = module._digest

    def counted(path: str) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(module, "_digest", counted)
    first = host_tools(tmp_path / "digests")
    assert len(read) > 100
    read.clear()
    assert host_tools(tmp_path / "digests") == first
    assert not read
