"""The patches of Debian source packages, from a real apt and a local archive, and from Debian's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from apt_kit import checksums, forget_lists, only_archive, release
from sources_kit import Files, git, tarball

from fabric import bounds
from fabric.errors import SourceError
from fabric.trove.configured import open_importer
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import WrongDigest
from fabric.trove.sources.resolve import Sources

ORIG = tarball({"thing-1.0/main.c": b"one\ntwo\nthree\n", "thing-1.0/other.c": b"1\n"}, "xz")
PATCHED = {"debian/patches/series": b"# comment\nfix.patch -p1 # why\n\nsub/more.patch\n"}


def change(file: str, old: str, new: str) -> bytes:
    return f"--- a/{file}\n+++ b/{file}\n@@ -1 +1 @@\n-{old}\n+{new}\n".encode()


FIX = (
    b"Description: fix\n\n--- thing.orig/main.c\n+++ thing/main.c\n"
    b"@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
)
MORE = change("other.c", "1", "one")


class Archive:
    """An archive of Debian source packages, and a trove on a machine that has only this one."""

    def __init__(self, files: Files, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = files
        self.top = top
        self.stanzas: list[str] = []
        only_archive(top, files.url, monkeypatch)
        self.lorry = top / "sources" / "all.lorry"
        self.lorry.parent.mkdir()
        self.said: list[str] = []

    def offer(self, version: str, *, format: str = "3.0 (quilt)", **files: bytes) -> None:
        """Offer a version of the package `thing`; its own files are named by their endings."""
        name = f"thing_{version.partition(':')[2] or version}"
        upstream = name.rpartition("-")[0] or name
        named = {
            f"{upstream if end.startswith('orig') else name}.{end.replace('_', '.')}": data
            for end, data in files.items()
        }
        named[f"{name}.dsc"] = f"Format: {format}\nSource: thing\nVersion: {version}\n".encode()
        for file, data in named.items():
            self.files.put(file, data)
        self.stanzas.append(
            f"Package: thing\nBinary: thing\nVersion: {version}\nFormat: {format}\n"
            f"Architecture: any\nDirectory: .\n{checksums(named)}\n"
        )
        self.publish()

    def publish(self) -> None:
        data = "".join(self.stanzas).encode()
        self.files.put("Sources", data)
        self.files.put("Release", release({"Sources": data}))
        forget_lists(self.top)

    def sources(self) -> Sources:
        folder = self.lorry.parent
        return Sources(
            self.top / "trove", {}, folder, importer=open_importer, progress=self.said.append
        )

    def write(self, text: str) -> None:
        self.lorry.write_text(text)

    def update(self) -> list[str]:
        return self.sources().update_lorry("thing")

    def content(self, file: str) -> bytes:
        lorry = self.sources().lorries.named("thing")
        source = self.sources().resolve("upstream:thing", lorry.ref)
        assert source.tree == lorry.tree
        return (self.sources().export(source) / file).read_bytes()


def debian(members: Mapping[str, bytes | str], **more: bytes | str) -> bytes:
    """An archive of Debian's changes."""
    return tarball({"debian/control": b"Source: thing\n", **members, **more}, "xz")


SERIES = debian({**PATCHED, "debian/patches/fix.patch": FIX, "debian/patches/sub/more.patch": MORE})
LORRY = "thing:\n  type: debian-source\n  debian-patches: true\n"


@pytest.fixture
def archive(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(files, tmp_path, monkeypatch)
    made.write(LORRY)
    return made


def test_debian_series_is_applied_in_order(archive: Archive) -> None:
    archive.offer("1:1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    changes = archive.update()
    assert [line.partition(" ")[0] for line in changes] == [
        *("version", "sha256", "debian-sha256", "tree")
    ]
    assert changes[0] == "version (none) -> 1.0-1"
    assert re.sub("[0-9a-f]{40,64}", "...", archive.lorry.read_text()) == (
        "thing:\n  type: debian-source\n  version: 1.0-1\n  sha256: ...\n"
        "  debian-patches: true\n  debian-sha256: ...\n  tree: ...\n"
    )
    assert archive.content("main.c") == b"one\n2\nthree\n"
    assert archive.content("other.c") == b"one\n"
    assert archive.update() == []
    assert "thing: applying 2 patches" in archive.said
    refs = git(archive.top / "trove/git/upstream/thing.git", "for-each-ref", "--format=%(refname)")
    assert refs == "refs/tags/1.0-1"


CHOSEN = "thing:\n  type: debian-source\n  debian-patches:\n  - {}\n"


def test_debian_patches_that_were_chosen_are_applied(archive: Archive) -> None:
    archive.write(CHOSEN.format("sub/*"))
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.update()
    assert "thing: applying 1 patch" in archive.said
    assert archive.content("main.c") == b"one\ntwo\nthree\n"
    some = archive.content("other.c")
    assert re.sub("[0-9a-f]{40,64}", "...", archive.lorry.read_text()) == (
        "thing:\n  type: debian-source\n  version: 1.0-1\n  sha256: ...\n  debian-sha256: ...\n"
        "  tree: ...\n  debian-patches:\n  - sub/*\n"
    )
    assert archive.update() == []
    archive.write(LORRY)
    archive.update()
    assert archive.content("main.c") == b"one\n2\nthree\n", "all of them make another tree"
    assert archive.content("other.c") == some


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("fixx.patch", "; did you mean 'fix.patch'?"), ("*", "; its series names sub/more.patch")],
)
def test_debian_patch_that_is_not_there_is_named(archive: Archive, pattern: str, hint: str) -> None:
    series = SERIES
    if pattern == "*":  # it fits no name with a folder
        members = {"debian/patches/series": b"sub/more.patch\n"}
        series = debian({**members, "debian/patches/sub/more.patch": MORE})
    archive.write(CHOSEN.format(f"'{pattern}'"))
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=series)
    with pytest.raises(SourceError) as caught:
        archive.update()
    assert str(caught.value) == (
        f"sources/all.lorry:3: thing: thing 1.0-1 has no patch {pattern}{hint}"
    )


def test_debian_patches_come_before_those_of_the_lorry(archive: Archive) -> None:
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.write(LORRY + "  patches: [ours.patch]\n")
    archive.lorry.with_name("ours.patch").write_bytes(change("other.c", "one", "ours"))
    archive.update()
    assert archive.content("other.c") == b"ours\n"
    before = archive.lorry.read_text()
    archive.offer("1.0-2", orig_tar_xz=ORIG, debian_tar_xz=debian({}))
    with pytest.raises(SourceError, match=r"ours\.patch does not apply: hunk 1"):
        archive.update()
    assert archive.lorry.read_text() == before, "an update that cannot be imported is not written"
    assert archive.content("other.c") == b"ours\n"


def test_dry_update_tells_what_is_newer_and_changes_nothing(archive: Archive) -> None:
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.update()
    archive.offer("1.0-2", orig_tar_xz=ORIG, debian_tar_xz=debian({}))
    before = archive.lorry.read_text()
    archive.said.clear()
    changes = archive.sources().update_lorry("thing", dry_run=True)
    assert [line.partition(" ")[0] for line in changes] == ["version", "debian-sha256", "strata"]
    assert changes[0] == "version 1.0-1 -> 1.0-2"
    assert archive.lorry.read_text() == before
    assert not any("importing" in line for line in archive.said)
    assert archive.update()[:2] == changes[:2]
    assert archive.sources().update_lorry("thing", dry_run=True) == []


def test_debian_revisions_reach_an_update_in_debians_order(archive: Archive) -> None:
    archive.offer("1.0-9", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.update()
    for version in ("1.0-10~deb13u1", "1.0-10"):
        archive.offer(version, orig_tar_xz=ORIG, debian_tar_xz=SERIES)
        before, *_ = archive.update()
        assert before.endswith(f" -> {version}")
        assert archive.sources().lorries.named("thing").ref == version.replace("~", "_")
    more = debian({"debian/patches/series": b"fix.patch\n", "debian/patches/fix.patch": FIX})
    archive.offer("1.0-10+deb13u1", orig_tar_xz=ORIG, debian_tar_xz=more)
    changes = archive.update()
    assert [line.partition(" ")[0] for line in changes] == [
        *("version", "debian-sha256", "tree", "strata")
    ]
    assert changes[-1] == "strata that name ref 1.0-10 must now name 1.0-10+deb13u1"
    assert archive.content("other.c") == b"1\n"
    archive.stanzas.pop()
    archive.publish()
    assert archive.update() == [
        "skipped 1.0-10: 1.0-10+deb13u1 is pinned, which is newer; the archives offer nothing"
        " above it"
    ]


def test_debian_revision_that_was_replaced_is_an_error(archive: Archive) -> None:
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.update()
    pinned = archive.lorry.read_text()
    archive.stanzas.clear()
    archive.offer("1.0-1+deb13u1", orig_tar_xz=ORIG, debian_tar_xz=debian({}))
    for used in (*archive.top.glob("trove/downloads/*"),):
        used.unlink()
    (archive.top / "trove/git").rename(archive.top / "old")
    with pytest.raises(MovedError) as caught:
        archive.content("main.c")
    assert str(caught.value) == (
        "sources/all.lorry:1: thing pins version 1.0-1 of the Debian source thing; the archives now"
        " offer 1.0-1+deb13u1; `fabric-initiator lorry update thing` takes the newest if it is"
        " newer; or set `debian-snapshot` to a time at which it was offered"
    )
    archive.update()
    assert archive.content("main.c") == b"one\ntwo\nthree\n", "without a series, nothing applies"
    archive.write(pinned)
    archive.stanzas.clear()
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=debian({"debian/x": b""}))
    for act in (archive.update, lambda: archive.content("main.c")):
        with pytest.raises(WrongDigest, match=r"thing: thing_1\.0-1\.debian\.tar\.xz: the offered"):
            act()


def test_debian_version_of_upstream_is_completed(archive: Archive) -> None:
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.offer("2.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    archive.write(LORRY + '  version: "1.0"\n')
    assert archive.update()[0] == "version 1.0 -> 1.0-1"
    archive.write(LORRY + '  version: "3.0"\n')
    with pytest.raises(SourceError, match=r"thing 3\.0 is not offered; there are 2\.0-1, 1\.0-1"):
        archive.update()


def test_a_pinned_source_without_its_patches_is_incomplete(archive: Archive) -> None:
    archive.write(LORRY + f"  version: 1.0-1\n  sha256: {'ab' * 32}\n")
    with pytest.raises(SourceError, match="thing has no debian-sha256 yet; `fabric-initiator lo"):
        archive.sources().resolve("upstream:thing", "1.0-1")


@pytest.mark.parametrize(
    ("format", "offered"),
    [
        ("3.0 (native)", {"tar_xz": ORIG}),
        ("1.0", {"orig_tar_gz": ORIG, "diff_gz": b""}),
    ],
)
def test_debian_package_without_a_series_is_an_error(
    archive: Archive, format: str, offered: dict[str, bytes]
) -> None:
    archive.offer("1.0-1" if format == "1.0" else "1.0", format=format, **offered)
    with pytest.raises(SourceError) as caught:
        archive.update()
    version = "1.0-1" if format == "1.0" else "1.0"
    assert str(caught.value) == (
        f"sources/all.lorry:1: thing {version} has no archive of patches, since its format is"
        f" {format}, and not 3.0 (quilt): remove 'debian-patches'"
    )


def test_debian_patch_that_does_not_fit_is_named(archive: Archive) -> None:
    wrong = debian({**PATCHED, "debian/patches/fix.patch": change("main.c", "zero", "0")})
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=wrong)
    with pytest.raises(SourceError) as caught:
        archive.update()
    assert str(caught.value) == (
        "sources/all.lorry:3: thing: thing 1.0-1 has no debian/patches/sub/more.patch, which its"
        " series names"
    )
    archive.stanzas.clear()
    wrong = debian(
        {"debian/patches/series": b"a", "debian/patches/a": change("main.c", "zero", "0")}
    )
    archive.offer("1.0-2", orig_tar_xz=ORIG, debian_tar_xz=wrong)
    with pytest.raises(SourceError) as caught:
        archive.update()
    assert str(caught.value) == (
        "sources/all.lorry:3: thing: the patch debian/patches/a of thing 1.0-2 does not apply: hunk"
        " 1 (line 3 of the patch) does not fit main.c, which has no such lines near line 1; without"
        " lines of context at its end, it fits the end of the file only:\n"
        "  | zero\n"
        "List only the patches that you need as `debian-patches`, or as `patches`."
    )


def test_debian_series_names_no_file_outside(archive: Archive) -> None:
    for name in ("../control", "/etc/passwd", "link", "none"):
        members: dict[str, bytes | str] = {
            "debian/patches/series": f"{name}\n".encode(),
            "debian/patches/link": "/etc/passwd",
        }
        archive.stanzas.clear()
        archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=debian(members))
        expected = "has no changes" if name == "link" else "has no debian/patches/"
        with pytest.raises(SourceError, match=expected):
            archive.update()


@pytest.mark.bound("PATCHES")
@pytest.mark.bound("PATCH")
def test_debian_series_past_a_bound_is_refused(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.offer("1.0-1", orig_tar_xz=ORIG, debian_tar_xz=SERIES)
    with monkeypatch.context() as small:
        small.setattr(bounds, "PATCHES", 1)
        with pytest.raises(SourceError, match=r"thing 1\.0-1 has more than 1 patches, the limit"):
            archive.update()
    monkeypatch.setattr(bounds, "PATCH", 50)
    with pytest.raises(SourceError, match="a patch has more than 50 bytes, or all have more than"):
        archive.update()


def test_real_debian_series(tmp_path: Path) -> None:
    """The series of busybox, from Debian's own archive."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/all.lorry").write_text(
        "busybox:\n  type: debian-source\n  debian-patches: true\n"
    )
    sources = Sources(tmp_path / "trove", {}, tmp_path / "sources", importer=open_importer)
    sources.update_lorry("busybox")
    lorry = sources.lorries.named("busybox")
    assert re.fullmatch(r"\d+\.\d+\.\d+-\d\S*", lorry.version)
    source = sources.resolve("upstream:busybox", lorry.ref)
    assert source.tree == lorry.tree
