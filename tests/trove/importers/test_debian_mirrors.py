"""A Debian archive whose index lists files that it does not hold."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources_kit import tarball

from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.trove.importers.apt import Stanza
from fabric.trove.importers.debian import import_source
from fabric.trove.importers.download import Downloads
from fabric.trove.sources.lorries import Lorries

NAME = "hello_2.10.orig.tar.gz"
NEWER, OLDER = "hello=2.10-3+deb13u1", "hello=2.10-3"


class Archives:
    """Two archives that offer revisions of one source, some of which cannot be downloaded."""

    def __init__(self, folder: Path, orig: bytes, missing: set[str]) -> None:
        self.folder = folder
        self.orig = orig
        self.missing = missing
        self.asked: list[str] = []

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        yield

    def update(self) -> bool:
        return False

    def show_source(self, name: str) -> list[Stanza]:
        line = f"\n {hashlib.sha256(self.orig).hexdigest()} {len(self.orig)} {NAME}"
        return [
            {"Package": name, "Version": each.partition("=")[2], "Checksums-Sha256": line}
            for each in (NEWER, OLDER)
        ]

    @contextlib.contextmanager
    def download(self, *command: str, what: str) -> Iterator[Path]:
        self.asked.append(command[-1])
        if command[-1] in self.missing:
            raise SourceError(f"{what}: 404 Not Found")
        (self.folder / NAME).write_bytes(self.orig)
        yield self.folder


def imported(top: Path, missing: set[str]) -> list[str]:
    """Import a source; returns the requested files."""
    orig = tarball({"hello-2.10/hello.c": b"int main;"})
    for name in ("sources", "downloads", "files"):
        (top / name).mkdir()
    (top / "sources/all.lorry").write_text(
        "hello:\n  type: debian-source\n  version: '2.10'\n"
        f"  sha256: {hashlib.sha256(orig).hexdigest()}\n"
    )
    lorry = Lorries(top / "sources").named("hello")
    apt = Archives(top / "files", orig, missing)
    downloads = Downloads(top / "downloads", print, CancelToken())
    assert import_source(lorry, apt, downloads)  # type: ignore[arg-type]
    return apt.asked


def test_debian_tarball_comes_from_any_archive_that_has_it(tmp_path: Path) -> None:
    assert imported(tmp_path, {NEWER}) == [NEWER, OLDER]


def test_debian_tarball_that_no_archive_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hello: 404 Not Found"):
        imported(tmp_path, {NEWER, OLDER})
