"""Import chunks: trees and Debian packages, installed without a sandbox or tools of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from building_kit import Kit
from deb_kit import PACKERS, deb, directory, hard_link, lines, lorry, member, symlink

from fabric.building import archive
from fabric.building.shell import shell
from fabric.definitions.graph import Device
from fabric.errors import BuildFailed, Cancelled, FabricError
from fabric.jobs import Job, Source, Staged


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds no program: no dpkg-deb, no tar, no bwrap."""
    monkeypatch.setenv("PATH", "/nowhere")


def packages(kit: Kit, **contents: bytes) -> Source:
    """A source as a lorry of type debian-packages makes it; packages in the order given."""
    return kit.tree(**lorry({f"{name}_1_all.deb": deb for name, deb in contents.items()}))


def imported(kit: Kit, source: Source, **fields: object) -> Job:
    return kit.chunk(**{"mode": "import", "staged": (), "source": source, **fields})


def misc(kit: Kit, job: Job) -> dict[str, archive.Entry]:
    return kit.entries(kit.build(job), "thing-misc")


@pytest.mark.parametrize("suffix", PACKERS)
def test_packages_are_unpacked_with_every_kind_of_entry(kit: Kit, suffix: str) -> None:
    long = "long/" + "x" * 120
    package = deb(
        directory("./etc/"),
        member("./etc/shut", b"secret", mode=0o600, uid=7, gid=8, uname="lp"),
        member("./etc/su", b"su", mode=0o4755),
        directory("./etc/empty/", mode=0o1777),
        directory("./dark/", mode=0o500),
        member("./dark/in", b"in", mode=0),
        symlink("./etc/soft", "../nowhere"),
        hard_link("./etc/hard", "./etc/su"),
        member("./etc/pipe", type=b"6", mode=0o640),
        member(f"./{long}", b"", mode=0o644),
        symlink("./far", "y" * 200),
        member("./etc/\udcff\n", b"odd"),
        member("./etc/big", bytes(3_000_001)),
        suffix=suffix,
    )
    found = misc(kit, imported(kit, packages(kit, one=package)))
    assert [*found] == [
        *("dark", "dark/in", "etc", "etc/big", "etc/empty", "etc/hard", "etc/pipe", "etc/shut"),
        *("etc/soft", "etc/su", "etc/\udcff\n", "far", "long", long),
    ]
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}
    modes = {name: f"{entry.mode:o}" for name, entry in found.items()}
    assert modes["etc"] == "755"
    assert (modes["etc/shut"], modes["etc/empty"], modes["dark"]) == ("600", "1777", "500")
    assert (modes["dark/in"], modes["etc/pipe"]) == ("0", "640")
    assert (found["etc/shut"].data, found["dark/in"].data) == (b"secret", b"in")
    assert found["etc/soft"].link == b"../nowhere"
    assert found["far"].link == b"y" * 200
    assert (found["etc/hard"].mode, found["etc/hard"].data) == (0o4755, b"su")
    assert (found["etc/su"].type, found["etc/su"].link) == (archive.HARD_LINK, b"etc/hard")
    assert found["etc/empty"].type == archive.DIRECTORY
    assert found["etc/pipe"].type == archive.FIFO
    assert found["etc/big"].size == 3_000_001
    assert kit.log_text == "one_1_all.deb\n"
    assert kit.phases == ["fetch", "install", "store"]


def test_packages_are_laid_in_order_and_through_links(kit: Kit) -> None:
    """/bin of the later packages is in /usr/bin, to which the first one links it."""
    base = deb(directory("./usr/bin/"), symlink("./bin", "usr/bin"), symlink("./s", "/bin"))
    first = deb(directory("./bin/"), member("./bin/tool", b"first"), member("./bin/own", b"own"))
    second = deb(
        member("./bin/tool", b"second", mode=0o755),
        hard_link("./bin/twin", "./usr/bin/tool"),
        symlink("./s/link", "tool"),
        hard_link("./s/again", "./bin/link"),
        hard_link("./t", "./s"),
        member("./t/last", b"last"),
    )
    kit.build(imported(kit, packages(kit, base=base, first=first, second=second)))
    layer = kit.workspace.root / "layers" / imported(kit, kit.tree()).key
    assert sorted(path.name for path in layer.iterdir()) == ["bin", "s", "t", "usr"]
    assert str((layer / "bin").readlink()) == "usr/bin"
    binaries = {path.name: path.read_text() for path in (layer / "usr/bin").iterdir()}
    assert binaries == {
        "tool": "second", "twin": "second", "own": "own", "link": "second", "again": "second",
        "last": "last",
    }  # fmt: skip
    assert (layer / "usr/bin/twin").samefile(layer / "usr/bin/tool")
    assert str((layer / "usr/bin/again").readlink()) == "tool"


def test_packages_that_are_not_listed_are_left_out(kit: Kit) -> None:
    files = {"a.deb": deb(member("./a")), "b.deb": deb(member("./b"))}
    source = kit.tree(**files, **{"packages.tsv": lines("b.deb"), "README": "x"})
    assert [*misc(kit, imported(kit, source))] == ["b"]
    source = kit.tree(**{"packages.tsv": ""})
    assert misc(kit, imported(kit, source, key="1" * 64)) == {}


def test_tree_is_installed_as_it_is(kit: Kit) -> None:
    source = kit.tree(plain="text", program="run")
    tree = kit.sources.trees[source.tree]
    (tree / "program").chmod(0o755)
    (tree / "empty").mkdir(mode=0o700)
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "packages.tsv").symlink_to("/etc/passwd")  # not the list of a lorry
    found = misc(kit, imported(kit, source))
    assert {name: (entry.type, f"{entry.mode:o}") for name, entry in found.items()} == {
        "empty": (archive.DIRECTORY, "700"),
        "link": (archive.SYMLINK, "777"),
        "packages.tsv": (archive.SYMLINK, "777"),
        "plain": (archive.FILE, "644"),
        "program": (archive.FILE, "755"),
    }
    assert found["plain"].data == b"text"
    assert kit.log_text == "The source tree is installed as it is.\n"
    assert tree.is_dir()


def test_tree_is_installed_with_its_submodules(kit: Kit) -> None:
    inner, outer = kit.tree(name="inner"), kit.tree(name="outer")
    (kit.sources.trees[outer.tree] / "lib").mkdir()
    source = Source("a", "r", "2" * 40, outer.tree, (("lib", inner),))
    found = misc(kit, imported(kit, source))
    assert (found["name"].data, found["lib/name"].data) == (b"outer", b"inner")


def test_import_chunk_is_split_and_completed_like_others(kit: Kit) -> None:
    device = Device("/dev/console", "c", 0o600, 5, 1, 0, 5)
    source = packages(kit, one=deb(member("./usr/bin/it", b"it"), member("./etc/it", b"it")))
    integration = (("thing-bins", "50-x", ("run",)),)
    manifest = kit.build(imported(kit, source, devices=(device,), integration=integration))
    assert [*kit.entries(manifest, "thing-bins")][-2:] == ["usr/bin", "usr/bin/it"]
    assert manifest.artifact("thing-devel").blob is None
    assert "baserock/system-integration/50-x-thing-bins-0000" in kit.entries(manifest, "thing-bins")
    found = {*kit.entries(manifest, "thing-misc")}
    assert {"dev/console", "etc/it"} <= found
    assert "usr/bin/it" not in found


def test_import_chunk_has_the_same_bytes_everywhere(kit: Kit, tmp_path: Path) -> None:
    other = Kit(tmp_path / "other", kit.base_archive)
    data = deb(directory("./a/", mode=0o2755), member("./a/b", b"b"), hard_link("./c", "a/b"))
    with other.workspace:
        made = [each.build(imported(each, packages(each, x=data))) for each in (kit, other)]
    assert made[0].artifacts == made[1].artifacts


def test_import_chunk_is_staged_for_others(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    job = imported(kit, packages(kit, one=deb(member("./greeting", b"hello"))), key="2" * 64)
    kit.build(job)
    monkeypatch.undo()
    user = kit.chunk("user", build=["cat /greeting"], staged=(kit.base, Staged(job.key, "low")))
    kit.build(user)
    assert "hello" in kit.log_text


def test_import_chunk_has_no_shell(kit: Kit) -> None:
    with pytest.raises(FabricError) as caught:
        shell(imported(kit, kit.tree()), kit.workspace, jobs=1)
    assert str(caught.value).startswith("thing is imported as it is, and has no sandbox; `")


def test_failed_import_keeps_its_files(kit: Kit) -> None:
    job = imported(kit, packages(kit, one=deb(member("./first", b"1")), two=b"no package"))
    with pytest.raises(BuildFailed, match=r"^two_1_all.deb: this package cannot be unpacked: "):
        kit.build(job)
    assert (kit.workspace.root / "failed" / job.key / "inst/first").read_text() == "1"


def _cancelled(kit: Kit) -> Job:
    kit.cancel.set()
    return imported(kit, kit.tree(it="it"))


@pytest.mark.parametrize(
    ("prepare", "options", "error"),
    [
        (_cancelled, {}, Cancelled),
        (
            lambda kit: imported(kit, packages(kit, big=deb(member("./big", bytes(50_000_000))))),
            {"timeout": 0.001},
            BuildFailed,
        ),
    ],
    ids=["cancelled", "late"],
)
def test_import_ends_when_it_must(
    kit: Kit, prepare: Callable[[Kit], Job], options: dict[str, float], error: type[Exception]
) -> None:
    job = prepare(kit)
    with pytest.raises(error):
        kit.build(job, **options)
    assert kit.store.manifest(job.key) is None


def test_packages_without_files(kit: Kit) -> None:
    source = packages(kit, none=deb(), root=deb(suffix=""))
    assert misc(kit, imported(kit, source)) == {}
