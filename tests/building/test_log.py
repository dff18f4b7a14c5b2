"""The log of a job is in memory while it is short, then in a file; readers see no difference."""

import os
from pathlib import Path

import pytest

from fabric.building.log import Log
from fabric.jobs import SMALL, Blob


@pytest.mark.parametrize("more", [b"", b"x", b"x" * SMALL, b"x" * 300_000])
def test_log_reads_back_as_it_was_written(tmp_path: Path, more: bytes) -> None:
    with Log(tmp_path / "log") as log:
        log.write("begun")
        assert log.blob() == Blob.of(b"begun\n")
        read, write = os.pipe()
        os.set_blocking(read, False)
        for at in range(0, len(more), 60_000):
            os.write(write, more[at : at + 60_000])
            assert log.take(read, len(more) + 1), "it is not at its end"
        os.close(write)
        assert not log.take(read, len(more) + 1)
        os.close(read)
        log.write("ended")
        whole = b"begun\n" + more + b"ended\n"
        assert log.size() == len(whole)
        assert log.read(0, len(whole) + 1) == whole
        assert log.read(4, 4) == whole[4:8]
        assert log.read(len(whole), 9) == b""
        assert log.blob() == Blob.of(whole)
        assert log.path.exists() == (len(whole) > SMALL)


def test_log_on_a_full_disk_loses_no_byte_and_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with Log(path) as log:
        log.write("begun")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                log.write("x" * SMALL)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert log.read(0, SMALL) == b"begun\n"
        path.unlink()
        log.write("x" * SMALL)
        assert path.read_bytes() == b"begun\n" + b"x" * SMALL + b"\n"


def test_log_that_is_discarded_leaves_no_file(tmp_path: Path) -> None:
    for text in ("short", "long" * SMALL):
        log = Log(tmp_path / "log")
        log.write(text)
        log.discard()
        assert not list(tmp_path.iterdir())
