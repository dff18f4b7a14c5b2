"""Log files in the user's directory."""

from pathlib import Path

import pytest

from fabric.errors import FabricError
from fabric.userlogs import UserLog


def test_it_grows_and_begins_anew(tmp_path: Path) -> None:
    log = UserLog(tmp_path, "build-step-zlib-misc.log")
    log.write(0, b"first attempt, lost\n")
    log.restart()
    log.write(0, b"a\n")
    log.write(2, b"b\n")
    assert log.path.read_bytes() == b"a\nb\n"
    assert log.tail(1) == ["b"]
    log.close()


def test_two_builds_in_one_directory_write_two_files(tmp_path: Path) -> None:
    first = UserLog(tmp_path, "build-step-a.log")
    second = UserLog(tmp_path, "build-step-a.log")
    first.write(0, b"1")
    second.write(0, b"2")
    assert first.path.read_bytes() == b"1"
    assert second.path == tmp_path / "build-step-a.2.log"
    first.close()
    second.close()
    again = UserLog(tmp_path, "build-step-a.log")
    assert again.path == tmp_path / "build-step-a.log"
    assert again.path.read_bytes() == b""
    again.close()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "build-step-a.log").symlink_to(tmp_path / "precious")
    with pytest.raises(FabricError, match="cannot write the log there"):
        UserLog(tmp_path, "build-step-a.log")


def test_no_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="No such file or directory"):
        UserLog(tmp_path / "gone", "build-step-a.log")
