"""Artifacts are installed over ssh, and taken away again: a real sshd, this machine's tools or
busybox.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from network_kit import free_ports
from sources_kit import SHELL, machine

from fabric.building.archive import DIRECTORY, FILE, HARD_LINK, SYMLINK, Entry, pack
from fabric.client.installs import Installation, Machine
from fabric.errors import FabricError, MachineFault

BUSYBOX = shutil.which("busybox")
#: The programs that a machine has at least.
TOOLS = (
    *("cat", "chroot", "cp", "find", "grep", "mkdir", "mv", "rm", "rmdir", "sh", "sort"),
    *("tar", "touch"),
)
ID = "tool-0123456789ab"
Tree = dict[str, str]


@pytest.fixture(scope="module", params=["this machine's", "busybox"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A machine, as ssh names it."""
    folder = tmp_path_factory.mktemp("machine")
    shell = SHELL
    if request.param == "busybox":
        if BUSYBOX is None:
            pytest.skip("needs the Debian package busybox-static")
        tools = folder / "tools"
        tools.mkdir()
        for name in TOOLS:
            (tools / name).symlink_to(BUSYBOX)
        shell = f"PATH={tools} {SHELL}"
    with (
        machine(folder, free_ports(), shell) as (host, path),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PATH", path)
        yield host


def packed(tmp_path: Path, *entries: Entry) -> Callable[[], BinaryIO]:
    """An archive, as a store opens it."""
    path = tmp_path / f"archive-{len(list(tmp_path.iterdir()))}"
    made = pack(entries, path)
    if isinstance(made.content, bytes):
        path.write_bytes(made.content)
    return lambda: path.open("rb")


def install(target: Machine, archives: list[Callable[[], BinaryIO]]) -> list[str]:
    with Installation(target, ID) as installation:
        return installation.install(archives)


def file(name: str, text: str, mode: int = 0o644) -> Entry:
    return Entry(name.encode(), FILE, mode, len(text), data=text.encode())


def tree(root: Path) -> Tree:
    """What is below a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = f"{path.stat().st_mode & 0o7777:o} " + (
                path.read_text() if path.is_file() else "/"
            )
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system: it has a link in place of a folder, and a program that is to be replaced."""
    top = tmp_path / "the root"
    for folder in ("usr/bin", "usr/lib", "var/lib"):
        (top / folder).mkdir(parents=True)
    (top / "lib").symlink_to("usr/lib")
    (top / "usr/bin/tool").write_text("old tool\n")
    (top / "usr/bin/tool").chmod(0o4755)
    (top / "usr/lib/libtool.so").symlink_to("libtool.so.1")
    (top / "usr/lib/folder").symlink_to("../bin")
    return top


def test_install_and_undo(host: str, root: Path, tmp_path: Path) -> None:
    before = tree(root)
    target = Machine.parse(f"{host}{root}")
    bins = packed(
        tmp_path,
        Entry(b"usr", DIRECTORY, 0o755),
        Entry(b"usr/bin", DIRECTORY, 0o755),
        file("usr/bin/tool", "new tool\n", 0o755),
        Entry(b"usr/bin/tool2", HARD_LINK, 0o755, link=b"usr/bin/tool"),
    )
    name = "n" * 120 + " x"
    libs = packed(
        tmp_path,
        Entry(b"lib", DIRECTORY, 0o755),
        Entry(b"lib/libtool.so", SYMLINK, 0o777, link=b"libtool.so.2"),
        file("lib/libtool.so.2", "library\n"),
        Entry(b"lib/folder", SYMLINK, 0o777, link=b"elsewhere"),
        Entry(b"share/deep", DIRECTORY, 0o755),
        file(f"share/deep/{name}", ""),
    )
    assert install(target, [bins, libs]) == [
        "replaced /lib/folder",
        "replaced /lib/libtool.so",
        "added /lib/libtool.so.2",
        f"added /share/deep/{name}",
        "replaced /usr/bin/tool",
        "added /usr/bin/tool2",
    ]
    now = tree(root)
    assert now["lib"] == "-> usr/lib"
    assert now["usr/bin/tool"] == now["usr/bin/tool2"] == "755 new tool\n"
    assert now["usr/lib/libtool.so"] == "-> libtool.so.2"
    assert now["usr/lib/folder"] == "-> elsewhere"
    assert now["usr/lib/libtool.so.2"] == "644 library\n"
    once_more = packed(tmp_path, file("usr/bin/tool", "newer\n", 0o755), file("usr/bin/x", "x"))
    assert install(target, [once_more]) == ["replaced /usr/bin/tool", "added /usr/bin/x"]
    assert tree(root)["usr/bin/tool"] == "755 newer\n"
    assert target.undo(ID) == [
        "restored /lib/folder",
        "restored /lib/libtool.so",
        "restored /usr/bin/tool",
        "removed /lib/libtool.so.2",
        f"removed /share/deep/{name}",
        "removed /usr/bin/tool2",
        "removed /usr/bin/x",
    ]
    after = tree(root)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) <= {"var/lib/distbuild", "var/lib/distbuild/edits"}
    with pytest.raises(MachineFault, match="nothing of it is installed there"):
        target.undo(ID)


def test_install_that_breaks_off_changes_nothing(host: str, root: Path, tmp_path: Path) -> None:
    target = Machine.parse(f"{host}{root}")
    whole = packed(tmp_path, file("usr/bin/tool", "new\n", 0o755))

    def broken() -> BinaryIO:
        raise FabricError("the store is gone")

    with pytest.raises(FabricError, match="the store is gone"):
        install(target, [whole, broken])
    assert tree(root)["usr/bin/tool"] == "4755 old tool\n"


def test_install_of_a_file_where_a_folder_is(host: str, root: Path, tmp_path: Path) -> None:
    target = Machine.parse(f"{host}{root}")
    with pytest.raises(MachineFault, match="/usr/bin is a folder there"):
        install(target, [packed(tmp_path, file("usr/bin", ""))])
    assert tree(root)["usr/bin/tool"] == "4755 old tool\n"
    assert target.undo(ID) == []


def test_install_names_the_machine_that_refuses(host: str, tmp_path: Path) -> None:
    nowhere = Machine.parse(f"{host}/proc/nothing")
    with pytest.raises(MachineFault, match=r"127\.0\.0\.1:"):
        install(nowhere, [packed(tmp_path, file("x", ""))])


class Counted:
    """A machine that writes down each program that it starts."""

    target: Machine

    def __init__(self, folder: Path) -> None:
        self._log = folder / "started"
        self._log.touch()
        self.path = folder / "counted"
        self.path.mkdir()
        (self.path / "sh").symlink_to("/bin/sh")
        for name in set(TOOLS) - {"sh"}:
            run = "" if name == "chroot" else f'exec {shutil.which(name)} "$@"'
            (self.path / name).write_text(f"#!/bin/sh\necho {name} >> {self._log}\n{run}\n")
            (self.path / name).chmod(0o755)

    def started(self) -> list[str]:
        """The programs since the last call."""
        names = self._log.read_text().split()
        self._log.write_text("")
        return names


@pytest.fixture
def counted(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """The machine `target` of these tests."""
    counted = Counted(tmp_path)
    with machine(tmp_path, free_ports(), f"PATH={counted.path} {SHELL}") as (host, path):
        monkeypatch.setenv("PATH", path)
        counted.target = Machine.parse(f"{host}{root}")
        yield counted


def test_install_starts_few_processes(counted: Counted, root: Path, tmp_path: Path) -> None:
    """In an emulated guest each takes a tenth of a second."""
    (root / "etc").mkdir()
    (root / "etc/ld.so.cache").touch()
    few = packed(tmp_path, *(file(f"usr/bin/n{n}", "x") for n in range(2)))
    many = packed(tmp_path, *(file(f"usr/bin/n{n}", "x") for n in range(22)))
    install(counted.target, [few])
    once = counted.started()
    install(counted.target, [few])
    assert counted.started() == once, "no more for a file that is known"
    install(counted.target, [many])
    assert len(counted.started()) == len(once) + 20 * len(["cp", "mv"])
    assert len(once) <= 8
    library = packed(tmp_path, file("usr/lib/libx.so.1", "x"))
    install(counted.target, [library])
    assert "chroot" in counted.started(), "it runs ldconfig"
    counted.target.undo(ID)
    assert "chroot" in counted.started()


def test_install_connects_before_there_is_something_to_install(
    counted: Counted, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(root)
    with Installation(counted.target, ID):
        pass
    connected = Installation(counted.target, ID)
    assert counted.started() == []
    assert tree(root) == before
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no ssh any more
    with connected as installation:
        done = installation.install([packed(tmp_path, file("usr/bin/x", "x"))])
    assert done == ["added /usr/bin/x"]


def test_install_connects_again_if_the_connection_has_ended(
    counted: Counted, root: Path, tmp_path: Path
) -> None:
    """So it does if ssh would ask something: the first one may not."""
    with Installation(counted.target, ID) as installation:
        installation._early.kill()
        installation._early.wait()
        done = installation.install([packed(tmp_path, file("usr/bin/x", "x"))])
    assert done == ["added /usr/bin/x"]
    assert (root / "usr/bin/x").read_text() == "x"


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "a b", "host/x", "ssh://", "a:b"])
def test_machine_with_a_wrong_name(text: str) -> None:
    with pytest.raises(FabricError, match="is no machine"):
        Machine.parse(text)


def test_machine_names() -> None:
    assert Machine.parse("root@box") == Machine("root@box")
    assert Machine.parse("root@box:/srv/root/") == Machine("root@box", "/srv/root")
    assert Machine.parse("ssh://root@box:22/srv") == Machine("ssh://root@box:22", "/srv")
