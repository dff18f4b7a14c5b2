"""status, list, why and cancel without a controller: the builds that run on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from initiator_kit import Project
from waiting import until

from fabric.client import running
from fabric.client.embedded import new_folder

NONE = (
    "no build of yours runs on this machine with the cache {}\n"
    "no controller is set: --controller HOST shows a farm\n"
)
#: A build that does not end by itself.
ENDLESS = "while sleep 0.1; do :; done"


def builds(project: Project) -> list[dict[str, Any]]:
    found = json.loads(project.run("list", "--json").stdout)
    return [one for one in found if one["running"]]


def links(project: Project) -> list[Path]:
    return list((project.cache / "state/running").iterdir())


def test_none_runs(project: Project) -> None:
    project.write(one="true")
    none = NONE.format(project.cache)
    for command in ("status", "list"):
        done = project.run(command)
        assert (done.returncode, done.stdout, done.stderr) == (0, none, "")
    assert json.loads(project.run("list", "--json").stdout) == []
    for line in ("why one", "status 0123", "cancel 0123"):
        done = project.run(*line.split())
        assert (done.returncode, done.stderr) == (1, f"fabric-initiator: {none}")
    assert project.build().returncode == 0
    assert links(project) == []
    assert project.run("status").stdout == none


def test_build_is_shown_explained_and_cancelled(project: Project) -> None:
    project.write(zlib=ENDLESS, app=("zlib", "true"))
    build = project.start()
    [info] = until(lambda: builds(project))
    assert info["title"].startswith("small for ")
    text = project.run("status").stdout
    assert "BUILD " in text
    assert "WORKER " in text
    assert "zlib  " in text
    text = project.run("status", info["request"][:12]).stdout
    assert "app                      waiting" in text
    assert project.run("why", "zlib").stdout.startswith("zlib is running: building on worker-")
    assert project.run("why", "app").stdout.startswith("app is blocked: it needs zlib, ")
    wrong = project.run("why", "zlbi")
    assert wrong.returncode == 1
    assert wrong.stderr.endswith("; did you mean 'zlib'?\n")
    assert info["request"][:12] in project.run("__complete", "fish", "cancel", "").stdout
    assert project.run("cancel", info["request"]).stdout.endswith(": cancelled\n")
    _, error = build.communicate(timeout=60)
    assert "cancelled" in error
    assert project.run("status").stdout == NONE.format(project.cache)


def test_two_builds_are_both_shown(project: Project) -> None:
    project.write(zlib=ENDLESS)
    project.start("--workers", "1")
    until(lambda: builds(project))
    project.start("--workers", "1")
    both = until(lambda: found if len(found := builds(project)) == 2 else [])
    for one in both:
        assert project.run("status", one["request"]).returncode == 0
    assert len(links(project)) == 2


def test_killed_build_leaves_no_link(project: Project) -> None:
    project.write(zlib=ENDLESS)
    build = project.start()
    until(lambda: builds(project))
    build.kill()
    until(lambda: project.run("status").stdout == NONE.format(project.cache))
    until(lambda: not links(project))


def test_prepared_build_is_mentioned(project: Project) -> None:
    folder, lock = new_folder()
    link = running.link_to(project.cache / "state", folder)
    running.announce(link, folder)
    try:
        said = "a build of yours reads definitions, or imports sources; no step runs yet\n"
        assert project.run("status").stdout == said
    finally:
        os.close(lock)
    assert project.run("status").stdout == NONE.format(project.cache)
    assert not link.is_symlink(), "a fabric that ended without cleaning up"
    shutil.rmtree(folder, ignore_errors=True)  # another build may have removed it


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_folder_of_another_user_is_not_followed(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "fabric-other"
    folder.mkdir(mode=0o700)
    with (folder / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        running.announce(running.link_to(project.cache / "state", folder), folder)
        mine = list(running.folders(project.cache / "state"))
        folder.chmod(0o755)
        open_to_all = list(running.folders(project.cache / "state"))
        folder.chmod(0o700)
        os.chown(folder, 65534, 65534)
        others = list(running.folders(project.cache / "state"))
    assert (mine, open_to_all, others) == ([folder], [], [])
    assert len(links(project)) == 1, "it is not ours to judge"
