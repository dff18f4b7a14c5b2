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
from fabric.client.installs import Machine
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
    assert target.install(ID, [bins, libs]) == [
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
    assert target.install(ID, [once_more]) == ["replaced /usr/bin/tool", "added /usr/bin/x"]
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
        target.install(ID, [whole, broken])
    assert tree(root)["usr/bin/tool"] == "4755 old tool\n"


def test_install_of_a_file_where_a_folder_is(host: str, root: Path, tmp_path: Path) -> None:
    target = Machine.parse(f"{host}{root}")
    with pytest.raises(MachineFault, match="/usr/bin is a folder there"):
        target.install(ID, [packed(tmp_path, file("usr/bin", ""))])
    assert tree(root)["usr/bin/tool"] == "4755 old tool\n"
    assert target.undo(ID) == []


def test_install_names_the_machine_that_refuses(host: str, tmp_path: Path) -> None:
    nowhere = Machine.parse(f"{host}/proc/nothing")
    with pytest.raises(MachineFault, match=r"127\.0\.0\.1:"):
        nowhere.install(ID, [packed(tmp_path, file("x", ""))])


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "a b", "host/x", "ssh://", "a:b"])
def test_machine_with_a_wrong_name(text: str) -> None:
    with pytest.raises(FabricError, match="is no machine"):
        Machine.parse(text)


def test_machine_names() -> None:
    assert Machine.parse("root@box") == Machine("root@box")
    assert Machine.parse("root@box:/srv/root/") == Machine("root@box", "/srv/root")
    assert Machine.parse("ssh://root@box:22/srv") == Machine("ssh://root@box:22", "/srv")
