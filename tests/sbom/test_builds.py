"""What is in the systems that a store has ever built, told by the manifests and the lorries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sbom_kit as kit
from small_definitions import git

from fabric import bounds
from fabric.definitions.graph import Kind
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress
from fabric.inputs import TREE
from fabric.jobs import Artifact, Blob, Content, Manifest
from fabric.sbom.bill import Component
from fabric.sbom.builds import Builds
from fabric.sbom.collect import ChunkFact, PackageFact
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.repositories import Importer
from fabric.trove.sources.resolve import Sources

OLD, NOW = "a" * 40, "b" * 40
VEX = "  vex: [{vulnerability: CVE-2025-1, status: fixed}]\n"


class World:
    """A store, and definitions with lorries."""

    def __init__(self, folder: Path) -> None:
        lorries = kit.LORRIES.replace("  cpe: zlib:zlib\n", f"  tree: {NOW}\n{VEX}")
        kit.write(folder / "definitions", lorries)
        self.trove = folder / "trove"
        self.sources = Sources(self.trove, {}, folder / "definitions/sources")
        self.store = Store(str(folder / "store"), folder / "tmp")
        self.lines: list[str] = []
        self.facts: dict[str, ChunkFact] = {}
        self._keys = 0

    def chunk(self, name: str, repo: str, ref: str, tree: str = OLD, commit: str = "") -> Content:
        """Store a chunk with a file in its one artifact."""
        blob = Blob.of(name.encode())
        metadata = {"repo": repo, "ref": ref, "sha1": commit}
        made = Artifact(f"{name}-misc", blob), Artifact(f"{name}-doc", None)
        self._put(name, "chunk", made, metadata=metadata, inputs={TREE: tree})
        return Content(kit.sha(self._keys), f"{name}-misc")

    def system(self, name: str, built: float, *contents: Content) -> str:
        artifact = Artifact(f"{name}-rootfs", Blob.of(b"x"), contents)
        self._put(name, "system", (artifact,), built=built, metadata={"morph": f"systems/{name}"})
        return kit.sha(self._keys)

    def _put(self, name: str, kind: Kind, artifacts: tuple[Artifact, ...], **more: Any) -> None:
        self._keys += 1
        key = kit.sha(self._keys)
        manifest = Manifest(
            key=key, kind=kind, name=name, arch="x86_64", artifacts=artifacts, **more
        )
        self.store.put(manifest, {})

    def builds(self) -> Builds:
        def known(key: str, names: list[str]) -> ChunkFact | None:
            assert names
            return self.facts.get(key)

        return Builds(self.store, self.sources, known, self.lines.append)

    def found(self) -> dict[str, Component]:
        """The components of all builds by their refs without the number."""
        builds = self.builds()
        bill, _ = builds.bill(builds.systems)
        return {one.ref.partition("/")[2]: one for one in bill.components}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_builds_are_told_by_name_and_time(world: World) -> None:
    zlib = world.chunk("zlib", "upstream:zlib", "1.3.1")
    world.system("b", 3.0, zlib)
    late = world.system("a", 2.0, zlib)
    early = world.system("a", 1.0, Content(zlib.key, "zlib-doc"), zlib)
    builds = world.builds()
    assert [one.name for one in builds.systems] == ["a", "a", "b"]
    assert [one.key for one in builds.systems[:2]] == [early, late]
    bill, places = builds.bill(builds.systems[:2])
    assert len(bill.components) == 2, "two sets of artifacts, each with what an SBOM may know"
    assert {one.key for where in places.values() for one in where} == {early, late}
    assert world.lines == []


def test_a_source_that_is_not_the_pinned_one_has_its_own_version(world: World) -> None:
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "1.3"))
    zlib = world.found()["zlib"]
    assert zlib.version == "1.3"
    assert zlib.purl == "pkg:github/madler/zlib@1.3"
    assert zlib.vex == ()


def test_a_statement_counts_for_the_pinned_source_alone(world: World) -> None:
    old = world.chunk("zlib", "upstream:zlib", "1.3.1", OLD)
    key = world.system("s", 1.0, old)
    assert world.found()["zlib"].vex == (), "it lacks the patch"
    assert world.found()["zlib"].version == "1.3.1"
    world.store.remove([key])
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "1.3.1", NOW))
    [statement] = world.found()["zlib"].vex
    assert statement.status == "fixed"


def test_a_ref_is_read_as_the_lorry_makes_it(tmp_path: Path, world: World) -> None:
    file = tmp_path / "definitions/sources/all.lorry"
    file.write_text(
        file.read_text().replace("  version: 1.3.1\n", "  version: 1.3.1\n  ref: v1.3.1\n")
    )
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "v1.3"))
    assert world.found()["zlib"].version == "1.3"


def test_a_version_in_a_package_url_is_not_that_of_all_builds(tmp_path: Path, world: World) -> None:
    file = tmp_path / "definitions/sources/all.lorry"
    file.write_text(file.read_text().replace("madler/zlib", "madler/zlib@1.3.1"))
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "1.3"))
    assert world.found()["zlib"].purl == "pkg:github/madler/zlib@1.3"


def test_repositories_with_and_without_a_lorry(world: World) -> None:
    one = world.chunk("mirrored", "upstream:mirrored", "v2", commit="c" * 40)
    two = world.chunk("own", "https://github.com/a/own.git", "HEAD", commit="d" * 40)
    three = world.chunk("gone", "upstream:gone", "1")
    world.system("s", 1.0, one, two, three)
    found = world.found()
    assert found["mirrored"].purl == f"pkg:github/example/mirrored@{'c' * 40}"
    assert found["own"].purl == f"pkg:github/a/own@{'d' * 40}"
    assert found["own"].version == "d" * 12
    assert (found["gone"].name, found["gone"].version) == ("gone", "1")


def test_parts_are_those_of_the_pinned_source(tmp_path: Path, world: World) -> None:
    file = tmp_path / "definitions/sources/all.lorry"
    head = f"  sha256: {kit.sha(2)}\n"
    file.write_text(file.read_text().replace(head, f"{head}  tree: {NOW}\n"))
    key = world.system("s", 1.0, world.chunk("gcc", "upstream:gcc", "14.2.0", NOW))
    assert world.found().keys() == {"gcc", "gcc/gmp", "gcc/zlib"}
    world.store.remove([key])
    world.system("s", 1.0, world.chunk("gcc", "upstream:gcc", "14.1.0", OLD))
    assert world.found().keys() == {"gcc"}, "nobody knows what was in it"


def test_packages_of_an_older_set_have_the_versions_of_their_files(world: World) -> None:
    opened: list[Path] = []

    def importer(root: Path, progress: Progress, cancel: CancelToken) -> Importer:  # noqa: ARG001
        opened.append(root)
        raise SourceError("nothing is imported here")

    world.sources = Sources(
        world.trove,
        {"upstream": "file:///nowhere/%s"},
        world.sources.lorries.directory,
        importer=importer,
    )
    place = world.sources.locate("upstream:debs").directory
    place.mkdir(parents=True)
    git(place, "init", "-q", "--bare")
    work = world.trove / "work"
    work.mkdir()
    git(work, "init", "-q")
    for name in ("libc6_2.40-1_amd64.deb", "gcc-14_1%3a14.1.0-1_amd64.deb", "README"):
        (work / name).write_text(name)
    git(work, "add", ".")
    git(work, "commit", "-qm", "x")
    git(work, "push", "-q", str(place), "HEAD:refs/heads/12")
    commit, tree = git(work, "rev-parse", "HEAD", "HEAD^{tree}").split()
    world.system("s", 1.0, world.chunk("libc", "upstream:debs", "12", tree, commit))
    found = world.found()
    assert found.keys() == {"libc", "libc/libc6", "libc/gcc-14"}
    assert found["libc/libc6"].purl == "pkg:deb/debian/libc6@2.40-1?arch=amd64"
    assert found["libc/gcc-14"].version == "1:14.1.0-1"
    world.store.remove(list(world.store.keys()))
    world.system("s", 1.0, world.chunk("libc", "upstream:debs", "13", tree, "e" * 40))
    assert world.found().keys() == {"libc"}
    assert opened == [], "a source that is not here is not imported"


def test_an_sbom_may_have_found_which_packages_are_in_the_image(
    tmp_path: Path, world: World
) -> None:
    lock = tmp_path / "definitions/sources/debs.lock"
    lock.write_text(f"tree {NOW}\n{lock.read_text()}")
    debs = world.chunk("libc", "upstream:debs", "13", NOW)
    world.system("s", 1.0, debs)
    assert world.found().keys() == {"libc", "libc/libc6", "libc/gcc-14"}
    inside = {kit.sha(8): PackageFact(inside=False), kit.sha(7): PackageFact(source=("glibc", "2"))}
    world.facts[debs.key] = ChunkFact(packages=inside)
    found = world.found()
    assert found.keys() == {"libc", "libc/libc6"}
    assert found["libc/libc6"].version == "2.41-12"
    assert found["libc/libc6"].origin == "pkg:deb/debian/glibc@2?arch=source"


def test_an_sbom_of_an_older_set_tells_its_packages(world: World) -> None:
    debs = world.chunk("libc", "upstream:debs", "12")
    world.system("s", 1.0, debs)
    old = PackageFact(source=("glibc", "2.40-1"), locked=("libc6", "2.40-1", "amd64"))
    tool = PackageFact(inside=False, locked=("gcc-14", "1:14.1.0-1", "amd64"))
    world.facts[debs.key] = ChunkFact(packages={kit.sha(17): old, kit.sha(18): tool})
    found = world.found()
    assert found.keys() == {"libc", "libc/libc6"}
    assert found["libc/libc6"].origin == "pkg:deb/debian/glibc@2.40-1?arch=source"
    assert found["libc/libc6"].purl == "pkg:deb/debian/libc6@2.40-1?arch=amd64"


def test_what_is_not_in_the_image_is_not_found(world: World) -> None:
    chunk = world.chunk("zlib", "upstream:zlib", "1.3.1")
    world.system("s", 1.0, Content(chunk.key, "zlib-doc"), Content(kit.sha(900), "gone-misc"))
    assert world.found() == {}
    builds = world.builds()
    assert builds.lacking(builds.systems) == 1


def test_text_of_a_stranger_harms_nothing(world: World) -> None:
    strange = "\x1b[2J\x00%zz@?#\u202e"
    contents = [
        world.chunk(f"c{number}", repo, strange, commit=strange)
        for number, repo in enumerate(
            ("", strange, "upstream:zlib", "https://github.com/a/b", "\udcff")
        )
        if repo != "\udcff"
    ]
    world.system("s", 1.0, *contents)
    assert len(world.found()) == 4


@pytest.mark.bound("SEARCHED_STEPS")
def test_so_many_steps_are_searched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "1.3.1"))
    monkeypatch.setattr(bounds, "SEARCHED_STEPS", 2)
    assert world.builds().systems
    assert world.lines == []
    monkeypatch.setattr(bounds, "SEARCHED_STEPS", 1)
    assert (len(world.builds().systems), world.found()) == (1, {}), "it was stored last"
    assert world.lines[1:] == [
        f"{world.store.url}: 1 built steps are not searched, those that were used longest ago:"
        " the limit is 1"
    ]


def test_a_remote_store_says_what_is_read(tmp_path: Path, world: World) -> None:
    world.store = Store("memory://", tmp_path / "tmp")
    world.system("s", 1.0, world.chunk("zlib", "upstream:zlib", "1.3.1"))
    assert world.found().keys() == {"zlib"}
    assert world.lines == ["memory://: reading the manifests of 2 built steps"]


def test_a_damaged_manifest_hides_no_other(tmp_path: Path, world: World) -> None:
    one = world.chunk("zlib", "upstream:zlib", "1.3.1")
    world.system("s", 1.0, one, world.chunk("gcc", "upstream:gcc", "1"))
    (tmp_path / "store/manifests" / one.key).write_text("rubbish")
    assert world.found().keys() == {"gcc"}
