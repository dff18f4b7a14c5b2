"""A user's definitions: reading them, and remembering the system that was built last."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from fabric.client.project import Project
from fabric.config import load_settings
from fabric.errors import DefinitionsError, FabricError


def project(root: Path, cache: Path) -> Project:
    return Project(root, load_settings({}, {"cache": str(cache)}), print)


def _remember(root: Path, cache: Path) -> None:
    mine = project(root, cache)
    for _ in range(300):
        mine.remember("systems/a.morph", "t", {"chunk x": "k"})
        assert mine.last_keys("systems/a.morph", "t") == {"chunk x": "k"}


def test_project_remembers_in_many_processes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    roots = [tmp_path / "one", tmp_path / "one", tmp_path / "other"]
    processes = [multiprocessing.Process(target=_remember, args=(root, cache)) for root in roots]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(cache.rglob("last-systems/*"))) == 2


def test_project_remembers_nothing_without_a_writable_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mine = project(tmp_path, tmp_path / "file/cache")
    mine.remember("systems/a.morph")
    assert mine.last_system() is None
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_project_without_a_version_file(tmp_path: Path) -> None:
    (tmp_path / "systems").mkdir()
    (tmp_path / "systems/a.morph").write_text("name: a\nkind: system\n")
    found = Project.find(tmp_path / "systems", load_settings({}, {"cache": "x"}), print)
    assert found.root == tmp_path
    with pytest.raises(DefinitionsError) as caught:
        found.graph("systems/a.morph")
    assert str(caught.value) == (
        "VERSION:1: there is no such file at the root of the definitions, so they are of version 0:"
        " `fabric-initiator migrate` brings them to version 8"
    )


def test_project_is_found_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("version: 8\n")
    (tmp_path / "file").touch()
    assert Project.find(tmp_path / "file", load_settings({}, {}), print).root == tmp_path


def test_project_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="no definitions here"):
        Project.find(tmp_path, load_settings({}, {"cache": "x"}), print)
