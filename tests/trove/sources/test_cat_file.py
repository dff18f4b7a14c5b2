"""Objects are read through one git process."""

from __future__ import annotations

from pathlib import Path

import pytest
from sources_kit import repository

from fabric.trove.sources.cat_file import CatFile
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.git import Repository


def test_cat_file_reads_objects_in_order(tmp_path: Path) -> None:
    repository(tmp_path / "work", {"empty": "", "full": "a\nb"})
    with CatFile(tmp_path / "work/.git") as objects:
        read = []
        for name in (b"empty", b"none", b"full"):
            objects.request(b"main:" + name)
            kind, size = objects.header()
            read.append((kind, b"".join(objects.pieces(size)) if size >= 0 else None))
    assert read == [(b"blob", b""), (b"missing", None), (b"blob", b"a\nb")]


def test_cat_file_notices_that_git_ended(tmp_path: Path) -> None:
    with CatFile(tmp_path / "no-repository") as objects, pytest.raises(EOFError):
        objects.header()


def test_committed_reads_an_empty_file_and_the_next(tmp_path: Path) -> None:
    commit = repository(tmp_path / "work", {"empty": "", "full": "a"})
    with Committed(Repository(tmp_path / "work/.git"), commit) as files:
        assert [files.read(name) for name in ("empty", "none", "full")] == [b"", None, b"a"]
