"""A user's checkout of definitions: what is read there, and what is remembered of it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from fabric.config import load_settings
from fabric.project import Project


def project(root: Path, cache: Path) -> Project:
    return Project(root, load_settings({}, {"cache": str(cache)}), print)


def _remember(root: Path, cache: Path) -> None:
    mine = project(root, cache)
    for _ in range(300):
        mine.remember("systems/a.morph", "t", {"chunk x": "k"})
        assert mine.last_keys("systems/a.morph", "t") == {"chunk x": "k"}


def test_any_number_of_processes_remember(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    roots = [tmp_path / "one", tmp_path / "one", tmp_path / "other"]
    processes = [multiprocessing.Process(target=_remember, args=(root, cache)) for root in roots]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(cache.rglob("last-systems/*"))) == 2


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mine = project(tmp_path, tmp_path / "file/cache")
    mine.remember("systems/a.morph")
    assert mine.last_system() is None
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
