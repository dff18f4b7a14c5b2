"""Log files in the user's directory."""

import hashlib
import shutil
from pathlib import Path

import pytest

from fabric.errors import FabricError
from fabric.jobs import Blob, Manifest
from fabric.trove.store import Store
from fabric.userlogs import MARKS, UserLog, complete

KEY = "a" * 64
LOG = b"from the first line\nto the last\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One that has the step `KEY`, and its log."""
    blob = Blob(hashlib.sha256(LOG).hexdigest(), len(LOG))
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    made = Manifest(key=KEY, kind="chunk", name="a", arch="x86_64", artifacts=(), log=blob)
    store.put(made, {blob.sha256: LOG})
    return store


def test_it_grows_and_begins_anew(tmp_path: Path) -> None:
    log = UserLog(tmp_path, "build-step-zlib-misc.log", KEY)
    log.write(0, b"first attempt, lost\n")
    log.restart()
    log.write(0, b"a\n")
    log.write(2, b"b\n")
    assert log.path.read_bytes() == b"a\nb\n"
    assert log.tail(1) == ["b"]
    log.close(whole=True)


def test_two_builds_in_one_directory_write_two_files(tmp_path: Path) -> None:
    first = UserLog(tmp_path, "build-step-a.log", KEY)
    second = UserLog(tmp_path, "build-step-a.log", KEY)
    first.write(0, b"1")
    second.write(0, b"2")
    assert first.path.read_bytes() == b"1"
    assert second.path == tmp_path / "build-step-a.2.log"
    first.close(whole=True)
    second.close(whole=True)
    again = UserLog(tmp_path, "build-step-a.log", KEY)
    assert again.path == tmp_path / "build-step-a.log"
    assert again.path.read_bytes() == b""
    again.close(whole=True)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "build-step-a.log").symlink_to(tmp_path / "precious")
    with pytest.raises(FabricError, match="cannot write the log there"):
        UserLog(tmp_path, "build-step-a.log", KEY)


def test_no_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="No such file or directory"):
        UserLog(tmp_path / "gone", "build-step-a.log", KEY)


def test_what_a_killed_writer_left_is_completed(tmp_path: Path, store: Store) -> None:
    with_mark = UserLog(tmp_path, "build-step-a.log", KEY)
    with_mark.write(0, LOG[:5])
    whole = UserLog(tmp_path, "build-step-b.log", KEY)
    whole.write(0, b"of a failed attempt, and whole")
    whole.close(whole=True)
    assert complete(tmp_path, store) == [], "it is being written"
    assert with_mark.path.read_bytes() == LOG[:5]
    with_mark.close(whole=False)
    assert complete(tmp_path, store) == []
    assert with_mark.path.read_bytes() == LOG
    assert whole.path.read_bytes() == b"of a failed attempt, and whole"
    assert not list(tmp_path.glob(MARKS))


def test_what_cannot_be_completed_is_told(tmp_path: Path, store: Store) -> None:
    for name, key in (("a", "b" * 64), ("b", KEY), ("c", KEY), ("d", "")):
        UserLog(tmp_path, f"build-step-{name}.log", key).close(whole=False)
    (tmp_path / "build-step-b.log").unlink()  # its user does not want it
    assert complete(tmp_path, store) == [
        "build-step-a.log is not complete: its build was stopped, or the rest was lost",
        "build-step-d.log is not complete: its build was stopped, or the rest was lost",
    ]
    assert sorted(mark.name for mark in tmp_path.glob(MARKS)) == [
        ".build-step-a.log.part",
        ".build-step-d.log.part",
    ]
    shutil.rmtree(tmp_path / "store/blobs")
    UserLog(tmp_path, "build-step-c.log", KEY).close(whole=False)
    assert "build-step-c.log is not complete: " in "".join(complete(tmp_path, store))
    assert len(list(tmp_path.glob(MARKS))) == 3
