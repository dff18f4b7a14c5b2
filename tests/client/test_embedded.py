"""The embedded fabric: it ends on time, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from initiator_kit import Project

from fabric.client import embedded
from fabric.client.embedded import GRACE


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", tmp_path / "cache")


@pytest.mark.parametrize("inodes", [2, 3, 4, 5, 6, 7])
def test_embedded_without_a_temporary_folder(project: Project, tmp_path: Path, inodes: int) -> None:
    """Whichever file cannot be made, the error is one line."""
    place = tmp_path / "t"
    place.mkdir()
    project.write(one="true")
    script = f'mount -t tmpfs -o size=64k,nr_inodes={inodes} none {place} && exec "$@"'
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    done = project.run(
        "build", "../systems/small.morph", within=within, environ={"TMPDIR": str(place)}
    )
    said = done.stdout + done.stderr
    assert not re.search("Traceback|unexpected|fault of distbuild", said), said
    assert "No space left on device" in said
    assert done.returncode in (1, 4), said


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.03])
def test_embedded_children_end_at_once_while_they_start(tmp_path: Path, delay: float) -> None:
    code = f"""if True:
        import time
        from pathlib import Path
        from fabric.config import load_settings
        from fabric.client.embedded import EmbeddedFabric
        with EmbeddedFabric(load_settings()) as fabric:
            fabric.start(2)
            while not (fabric.directory / "worker-2.err").exists():
                fabric.check()
            time.sleep({delay})
            began = time.monotonic()
        print(time.monotonic() - began)
    """
    environ = dict(os.environ, FABRIC_CACHE=str(tmp_path), FABRIC_CONFIG="/dev/null")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < GRACE / 2, "none had to be killed"


def test_embedded_starts_no_more_workers_than_there_are_steps(tmp_path: Path) -> None:
    code = """if True:
        import time
        from fabric.config import load_settings
        from fabric.client.embedded import EmbeddedFabric
        with EmbeddedFabric(load_settings(overrides={"workers": 3})) as fabric:
            def workers(least):
                until = time.monotonic() + 60
                while len(found := list(fabric.directory.glob("worker-*.err"))) < least:
                    fabric.check()
                    assert time.monotonic() < until
                time.sleep(0.2)  # more would follow at once
                return len(found)
            for steps, least in ((1, 1), (1, 1), (2, 2), (1, 2), (9, 3)):
                fabric.start(steps)
                print(workers(least), end=" ")
    """
    environ = dict(os.environ, FABRIC_CACHE=str(tmp_path), FABRIC_CONFIG="/dev/null")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "2", "2", "3"]


def test_embedded_sweep_keeps_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that start at the same time do not remove each other's folders."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = threading.Event()

    def sweeping() -> None:
        while not done.is_set():
            embedded.sweep()

    sweepers = [threading.Thread(target=sweeping) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for _ in range(2000):
            folder, lock = embedded.new_folder()
            assert list(folder.iterdir())
            shutil.rmtree(folder)
            os.close(lock)
    finally:
        done.set()
        for sweeper in sweepers:
            sweeper.join()
