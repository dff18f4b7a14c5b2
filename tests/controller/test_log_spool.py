"""The disk that log spools share, and files of former runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from small_disk import on_small_disk

from fabric import bounds
from fabric.controller.log_spool import DIGESTED_AT_ONCE
from fabric.controller.spools import ASK_AGAIN, Spools

PIECE = b"x" * 50_000


def key_of(n: int) -> str:
    return f"{n:064x}"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def logged(spools: Spools, n: int, data: bytes = PIECE, *, ended: bool = False) -> None:
    """A log of that many bytes."""
    spools.begin(key_of(n), 1, "w1", found=False)
    spools.append(key_of(n), 1, 0, data)
    if ended:
        spools.end(key_of(n), 1, len(data), sha(data), float(n))


def kept(spools: Spools, *numbers: int) -> list[int]:
    """The fences of readable logs."""
    return [n for n in numbers if spools.read(key_of(n), 1, 0, 1) is not None]


def files(directory: Path) -> set[int]:
    return {int(path.name.partition(".")[0], 16) for path in directory.iterdir()}


def test_log_disk_removes_ended_logs_oldest_first(tmp_path: Path) -> None:
    spools = Spools(tmp_path, 0, quota=4 * len(PIECE))
    logged(spools, 1)
    for n in (2, 3, 4):
        logged(spools, n, ended=True)
    logged(spools, 5)
    assert kept(spools, 1, 2, 3, 4, 5) == [1, 3, 4, 5]
    logged(spools, 6)
    assert kept(spools, 1, 2, 3, 4, 5, 6) == [1, 4, 5, 6]
    assert files(tmp_path) == {1, 4, 5, 6}


def test_log_disk_removes_the_longest_log(tmp_path: Path) -> None:
    spools = Spools(tmp_path, 0, quota=10 * len(PIECE))
    for n in (1, 2, 3):
        logged(spools, n)
    spools.begin(key_of(9), 1, "evil", found=False)
    for n in range(100):
        offset, fresh = spools.append(key_of(9), 1, n * len(PIECE), PIECE)
        assert (offset, len(fresh)) == (n * len(PIECE), len(PIECE)), "who follows it has it"
    assert kept(spools, 1, 2, 3, 9) == [1, 2, 3]
    logged(spools, 4)
    assert files(tmp_path) == {1, 2, 3, 4}


@pytest.mark.bound("LOGS_DISK")
def test_log_disk_removes_files_of_former_runs_first(tmp_path: Path) -> None:
    for n, size in ((1, bounds.LOGS_DISK - 1), (2, 1)):  # holes
        with (tmp_path / f"{key_of(n)}.1").open("wb") as file:
            file.truncate(size)
        os.utime(file.name, (n, n))
    spools = Spools(tmp_path, 0)
    logged(spools, 3)
    assert files(tmp_path) == {2, 3}


@pytest.mark.bound("STEP_LOG")
def test_spool_of_a_log_that_is_too_long_is_dropped(tmp_path: Path) -> None:
    with (tmp_path / f"{key_of(1)}.1").open("wb") as file:
        file.truncate(bounds.STEP_LOG)
    spools = Spools(tmp_path, 0)
    spools.begin(key_of(1), 1, "w1")
    assert kept(spools, 1) == [1]
    assert spools.append(key_of(1), 1, bounds.STEP_LOG, b"x") == (bounds.STEP_LOG, b"")
    assert kept(spools, 1) == []
    assert files(tmp_path) == set()
    spools.end(key_of(1), 1, bounds.STEP_LOG + 1, sha(b""), 1.0)
    assert not spools.incomplete(key_of(1), 1, 2.0), "it is not waited for"


@pytest.mark.bound("LOGS_SPARE")
def test_log_disk_leaves_room_on_the_disk(tmp_path: Path) -> None:
    code = f"""
        import os
        from pathlib import Path
        from fabric.controller.spools import Spools
        spools = Spools(Path({str(tmp_path)!r}), 0)
        for n in range(20):
            spools.begin(f"{{n:064x}}", 1, "w1", found=False)
            for piece in range(8):
                spools.append(f"{{n:064x}}", 1, piece << 16, bytes(1 << 16))
        status = os.statvfs({str(tmp_path)!r})
        print(status.f_bavail * 10 // status.f_blocks)
        print(len(os.listdir({str(tmp_path)!r})))
    """
    left, logs = on_small_disk("8m", tmp_path, code)
    assert int(left) >= 1, "a tenth"
    assert int(logs) > 10


# -- files of former runs -------------------------------------------------------------------------


def test_spool_of_a_former_run_is_digested_in_parts(tmp_path: Path) -> None:
    text = os.urandom(3 * DIGESTED_AT_ONCE)
    (tmp_path / f"{key_of(1)}.1").write_bytes(text)
    spools = Spools(tmp_path)
    spools.begin(key_of(1), 1, "w1")
    assert spools.append(key_of(1), 1, len(text), b"more")[1] == b"more"
    text += b"more"
    spools.end(key_of(1), 1, len(text), sha(text), 1.0)
    turns = 0
    while spools.incomplete(key_of(1), 1, 1.0):
        assert spools.next_due() < 0.0, "at once"
        assert list(spools.wanted(2.0)) == [], "nothing of it is missing"
        spools.digest()
        turns += 1
    assert turns == 4
    piece = spools.read(key_of(1), 1, len(text) - 4, 10)
    assert piece is not None
    assert (piece.data, piece.size) == (b"more", len(text))
    assert spools.append(key_of(1), 1, len(text), b"x")[1] == b"", "it is whole"


@pytest.mark.parametrize("found", ["wrong", "cut off", "removed"])
def test_spool_of_a_damaged_file_is_requested_again(tmp_path: Path, found: str) -> None:
    text = b"a line\n" * 1000
    file = tmp_path / f"{key_of(1)}.1"
    file.write_bytes(text.upper() if found == "wrong" else text)
    spools = Spools(tmp_path)
    spools.begin(key_of(1), 1, "w1")
    if found == "cut off":
        file.write_bytes(b"")
    elif found == "removed":
        file.unlink()
    spools.end(key_of(1), 1, len(text), sha(text), 1.0)
    spools.digest()
    [(_, wanted)] = spools.wanted(1.0 + ASK_AGAIN)
    assert wanted.offset == 0
    spools.append(key_of(1), 1, 0, text)
    assert not spools.incomplete(key_of(1), 1, 1.0)
    piece = spools.read(key_of(1), 1, 0, len(text))
    assert piece is not None
    assert piece.data == text


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "loop"])
def test_spool_ignores_what_is_not_a_file(tmp_path: Path, kind: str) -> None:
    directory, place = tmp_path / "logs", tmp_path / "logs" / f"{key_of(1)}.1"
    directory.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    match kind:
        case "directory":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
        case "link":
            place.symlink_to(tmp_path / "secret")
        case _:
            place.symlink_to(place)
    spools = Spools(directory, 0)
    spools.begin(key_of(1), 1, "w1")
    spools.append(key_of(1), 1, 0, b"a line\n")
    spools.digest()
    piece = spools.read(key_of(1), 1, 0, 100)
    assert piece is None or piece.data == b"a line\n"
    assert (tmp_path / "secret").read_bytes() == b"secret"
    spools.sweep_files()
    spools.close()
