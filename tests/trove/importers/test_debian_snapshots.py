"""Pins that Debian's archives no longer offer: with a real apt, and local archives with a past."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path

import deb_kit
import pytest
from apt_kit import checksums, forget_lists, only_archive, release
from sources_kit import Files, tarball

from fabric.errors import SourceError
from fabric.trove.configured import open_importer
from fabric.trove.importers.debian import MovedError
from fabric.trove.sources.resolve import Sources

THEN = "20260102T030405Z"
DATE = "Fri, 02 Jan 2026 00:00:00 UTC"
LORRIES = """\
thing:
  type: debian-source
tools:
  type: debian-packages
  packages: [tool]
  version: "1"
"""


class Archive:
    """An archive with one source and one package, its snapshot, and a trove."""

    def __init__(self, files: Files, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = files
        self.top = top
        server = f"{files.url}/then/@SNAPSHOTID@/"
        mapped = f'Acquire::Snapshots::URI::Host::127.0.0.1 "{server}";\n'
        self.conf = only_archive(top, f"{files.url}/now", monkeypatch, mapped)
        (top / "sources").mkdir()
        (top / "sources/all.lorry").write_text(LORRIES)

    def offer(self, folder: str, version: str, *more: str) -> None:
        """Offer that version alone, in a folder of the server; ``more``: lines of its Release."""
        orig = tarball({f"thing-{version}/version": version.encode()}, "xz")
        package = deb_kit.deb(deb_kit.member("./version", version.encode()))
        binary = f"tool_{version}_amd64.deb"
        sources = {
            f"thing_{version}.orig.tar.xz": orig,
            f"thing_{version}-1.dsc": b"Format: 3.0 (quilt)\nSource: thing\n",
        }
        indexes = {
            "Sources": (
                f"Package: thing\nBinary: tool\nVersion: {version}-1\nFormat: 3.0 (quilt)\n"
                f"Architecture: any\nDirectory: .\n{checksums(sources)}\n"
            ).encode(),
            "Packages": (
                f"Package: tool\nVersion: {version}\nArchitecture: amd64\nMaintainer: -\n"
                f"Filename: ./{binary}\nSize: {len(package)}\n"
                f"SHA256: {hashlib.sha256(package).hexdigest()}\n\n"
            ).encode(),
        }
        lines = "".join(f"{line}\n" for line in ("Label: Test", f"Date: {DATE}", *more))
        named = {**sources, binary: package, **indexes, "Release": release(indexes, lines)}
        for file, data in named.items():
            self.files.put(f"{folder}/{file}", data)
        forget_lists(self.top)

    def sources(self, trove: str, snapshot: str = "") -> Sources:
        importer = functools.partial(open_importer, snapshot=snapshot)
        return Sources(self.top / trove, {}, self.top / "sources", importer=importer)


@pytest.fixture
def archive(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Version 1 is pinned, but the archive offers version 2 only."""
    made = Archive(files, tmp_path, monkeypatch)
    made.offer("now", "1.0")
    for name in ("thing", "tools"):
        made.sources("first").update_lorry(name)
    made.offer("now", "2.0")
    # like a snapshot of the archive of updates, whose Release counts for a week
    made.offer(f"then/{THEN}", "1.0", "Valid-Until: Fri, 09 Jan 2026 00:00:00 UTC")
    return made


@pytest.mark.parametrize(("repo", "ref"), [("upstream:thing", "1.0"), ("upstream:tools", "1")])
def test_pins_of_the_past_are_imported_from_a_snapshot(
    archive: Archive, repo: str, ref: str
) -> None:
    with pytest.raises(MovedError, match="debian-snapshot"):
        archive.sources("second").resolve(repo, ref)
    source = archive.sources("second", THEN).resolve(repo, ref)
    assert source.tree == archive.sources("first").resolve(repo, ref).tree
    assert archive.sources("second").resolve(repo, ref) == source, "it is in the trove"


def test_update_with_a_snapshot_takes_the_newest(archive: Archive) -> None:
    changes = archive.sources("second", THEN).update_lorry("thing")
    assert changes[0] == "version 1.0 -> 2.0"


def test_archive_may_say_itself_where_its_snapshots_are(archive: Archive) -> None:
    archive.conf.write_text(re.sub("Acquire::Snapshots.*", "", archive.conf.read_text()))
    with pytest.raises(MovedError):
        archive.sources("second", THEN).resolve("upstream:thing", "1.0")
    archive.offer("now", "2.0", f"Snapshots: {archive.files.url}/then/@SNAPSHOTID@/")
    assert archive.sources("second", THEN).resolve("upstream:thing", "1.0")


def test_apt_without_snapshots_is_an_error(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ignore the setting, and what it offers would not be what it says."""
    old = archive.top / "bin"
    old.mkdir()
    (old / "apt-config").write_text('#!/bin/sh\n[ "$4" != Acquire::Snapshots ] || exit 0\nexit 1\n')
    (old / "apt-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{old}:{os.environ['PATH']}")
    with pytest.raises(SourceError, match="`debian-snapshot` needs an apt that knows snapshots"):
        archive.sources("second", THEN).resolve("upstream:thing", "1.0")
