"""Log files in the user's directory, and the part files beside them."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fabric.bounds import LOG_LIST
from fabric.client.user_logs import PART_FILES, UserLogs, complete
from fabric.errors import FabricError
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.store import Store

KEY = "a" * 64
LOG = b"from the first line\nto the last\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the step `KEY` and its log."""
    blob = Blob(hashlib.sha256(LOG).hexdigest(), len(LOG))
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    made = Manifest(key=KEY, kind="chunk", name="a", arch="x86_64", artifacts=(), log=blob)
    store.put(made, {blob.sha256: LOG})
    return store


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[UserLogs]:
    with closing(UserLogs(tmp_path)) as logs:
        yield logs


def test_user_log_grows_and_begins_anew(logs: UserLogs) -> None:
    log = logs.open("build-step-zlib-misc.log", KEY)
    log.write(0, b"first attempt, lost\n")
    log.restart()
    log.write(0, b"a\n")
    log.write(2, b"b\n")
    assert log.path.read_bytes() == b"a\nb\n"
    assert log.tail(1) == ["b"]
    log.close(whole=True)


def test_user_logs_of_two_builds_are_two_files(tmp_path: Path) -> None:
    with closing(UserLogs(tmp_path)) as one, closing(UserLogs(tmp_path)) as other:
        first = one.open("build-step-a.log", KEY)
        second = other.open("build-step-a.log", KEY)
        first.write(0, b"1")
        second.write(0, b"2")
        assert first.path.read_bytes() == b"1"
        assert second.path == tmp_path / "build-step-a.2.log"
        assert len(list(tmp_path.glob(PART_FILES))) == 2
        first.close(whole=True)
        second.close(whole=True)
        again = other.open("build-step-a.log", KEY)
        assert again.path == tmp_path / "build-step-a.log"
        assert again.path.read_bytes() == b""
        again.close(whole=True)
    assert not list(tmp_path.glob(PART_FILES))


def test_user_log_is_not_written_through_a_link(tmp_path: Path, logs: UserLogs) -> None:
    (tmp_path / "build-step-a.log").symlink_to(tmp_path / "precious")
    with pytest.raises(FabricError, match="cannot write the log there"):
        logs.open("build-step-a.log", KEY)


def test_user_logs_report_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="No such file or directory"):
        UserLogs(tmp_path / "gone")


def test_user_log_of_a_killed_writer_is_completed(tmp_path: Path, store: Store) -> None:
    with closing(UserLogs(tmp_path)) as logs:
        begun = logs.open("build-step-a.log", KEY)
        begun.write(0, LOG[:5])
        whole = logs.open("build-step-b.log", KEY)
        whole.write(0, b"of a failed attempt, and whole")
        whole.close(whole=True)
        assert complete(tmp_path, store) == [], "it is being written"
        assert begun.path.read_bytes() == LOG[:5]
        begun.close(whole=False)
    assert complete(tmp_path, store) == []
    assert begun.path.read_bytes() == LOG
    assert whole.path.read_bytes() == b"of a failed attempt, and whole"
    assert not list(tmp_path.glob(PART_FILES))


def test_part_file_survives_a_kill_at_any_byte(tmp_path: Path, store: Store) -> None:
    with closing(UserLogs(tmp_path)) as logs:
        for name in "ab":
            log = logs.open(f"build-step-{name}.log", KEY)
            log.write(0, LOG[:5])
            log.close(whole=False)
    [notes] = tmp_path.glob(PART_FILES)
    left = notes.read_bytes()
    for end in range(len(left) + 1):
        notes.write_bytes(left[:end])
        complete(tmp_path, store)
        begun = [tmp_path / f"build-step-{name}.log" for name in "ab"][: left.count(b"\n", 0, end)]
        assert all(log.read_bytes() == LOG for log in begun)
        assert not list(tmp_path.glob(PART_FILES))
        for file in begun:
            file.write_bytes(LOG[:5])


def test_part_file_of_a_killed_build_is_taken_over(tmp_path: Path, store: Store) -> None:
    with closing(UserLogs(tmp_path)) as killed:
        killed.open("build-step-a.log", KEY).close(whole=False)
        killed.open("build-step-b.log", "b" * 64).close(whole=False)
    with closing(UserLogs(tmp_path)) as logs:
        log = logs.open("build-step-b.log", "c" * 64)
        log.write(0, b"of today")
        log.close(whole=True)
        assert len(list(tmp_path.glob(PART_FILES))) == 1
    assert complete(tmp_path, store) == []
    assert (tmp_path / "build-step-a.log").read_bytes() == LOG
    assert (tmp_path / "build-step-b.log").read_bytes() == b"of today"


def test_user_log_that_cannot_be_completed_is_reported_once(tmp_path: Path, store: Store) -> None:
    with closing(UserLogs(tmp_path)) as logs:
        for name, key in (("a", "b" * 64), ("b", KEY), ("c", KEY)):
            logs.open(f"build-step-{name}.log", key).close(whole=False)
    (tmp_path / "build-step-b.log").unlink()  # its user removed it
    told = ["build-step-a.log is not complete: its build was stopped, or the rest was lost"]
    assert complete(tmp_path, store) == told
    assert complete(tmp_path, store) == []
    with closing(UserLogs(tmp_path)) as logs:
        logs.open("build-step-z.log", KEY).close(whole=True)
    assert complete(tmp_path, store) == [], "a build that has nothing to do with it"
    with closing(UserLogs(tmp_path)) as logs:
        logs.open("build-step-a.log", "c" * 64).close(whole=False)
    assert complete(tmp_path, store) == told, "stopped once more"
    with closing(UserLogs(tmp_path)) as logs:
        logs.open("build-step-a.log", "c" * 64).close(whole=True)
    assert not list(tmp_path.glob(PART_FILES))
    assert (tmp_path / "build-step-c.log").read_bytes() == LOG
    shutil.rmtree(tmp_path / "store/blobs")
    with closing(UserLogs(tmp_path)) as logs:
        logs.open("build-step-c.log", KEY).close(whole=False)
    assert "build-step-c.log is not complete: " in "".join(complete(tmp_path, store))


@pytest.mark.parametrize(
    "name",
    [
        "precious",
        "../precious",
        "/etc/hostname",
        "build-step-a.log/../precious",
        "build-step-a.txt",
    ],
)
def test_part_file_that_is_forged_names_only_logs(tmp_path: Path, store: Store, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for folder in (here, tmp_path):
        for file in ("precious", "build-step-a.txt"):
            (folder / file).write_text("precious")
    notes = here / ".build-step-logs-x.part"
    notes.write_text(f"{KEY} {name}\n")
    assert complete(here, store) == []
    for folder in (here, tmp_path):
        for file in ("precious", "build-step-a.txt"):
            assert (folder / file).read_text() == "precious"


@pytest.mark.bound("LOG_LIST")
def test_part_file_that_is_invalid_is_left_alone(tmp_path: Path, store: Store) -> None:
    os.mkfifo(tmp_path / ".build-step-logs-a.part")
    with (tmp_path / ".build-step-logs-b.part").open("w") as file:
        file.write(f"{KEY} build-step-a.log\n")
        file.truncate(LOG_LIST + 1)
    (tmp_path / "build-step-a.log").write_bytes(b"mine")
    assert complete(tmp_path, store) == []
    with closing(UserLogs(tmp_path)):
        pass
    assert (tmp_path / "build-step-a.log").read_bytes() == b"mine"
