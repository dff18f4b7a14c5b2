"""The search for secrets finds them in files and command lines."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import secrets_kit

SECRET = b"k" * 40


def test_walk_finds_a_secret_in_any_file(tmp_path: Path) -> None:
    places = [0, 4096, (8 << 20) - 1, (8 << 20) + (1 << 22) - 20, 1 << 30]
    for number, place in enumerate(places):
        with (tmp_path / str(number)).open("wb") as file:
            file.seek(place)
            file.write(SECRET)
            file.truncate(2 << 30)
    with (tmp_path / "dense").open("wb") as file:
        file.write(os.urandom((8 << 20) - 20) + SECRET + bytes(100))
    (tmp_path / "0").chmod(0o644)
    (tmp_path / "1").chmod(0o600)
    (tmp_path / "other").write_bytes(SECRET[1:])
    os.mkfifo(tmp_path / "pipe")
    found = dict(secrets_kit.holding([b"x" * 50, SECRET], [str(tmp_path)]))
    assert {Path(path).name for path in found} == {"0", "1", "2", "3", "4", "dense"}
    assert (found[f"{tmp_path}/0"], found[f"{tmp_path}/1"]) == (0o644, 0o600)


def test_walk_skips_files_that_are_older(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(SECRET)
    time.sleep(0.05)
    since = time.time() - 0.02
    new.write_bytes(SECRET)
    assert [path for path, _ in secrets_kit.holding([SECRET], [str(tmp_path)], since)] == [str(new)]


def test_watch_finds_a_command_line(tmp_path: Path) -> None:
    def start(*command: str, **popen: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(command, text=True, **popen)

    watch = secrets_kit.start_watch(start)
    with subprocess.Popen(["tail", "-f", tmp_path / "0.0625", "/dev/null"]) as command:
        assert f"tail\0-f\0{tmp_path}/0.0625\0/dev/null\0" in secrets_kit.end_watch(watch)
        command.kill()
