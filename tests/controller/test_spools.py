"""The broker's log spools."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from fabric import bounds
from fabric.controller.spools import ASK_AGAIN, GIVE_UP, KEEP, MEMORY, OPEN_FILES, SHORT, Spools
from fabric.wire.messages import LogPiece

KEY = "a" * 64
TEXT = b"one\ntwo\nthree\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=[0, len(TEXT) + 4, MEMORY], ids=["files", "either", "memory"])
def spools(tmp_path: Path, request: pytest.FixtureRequest) -> Spools:
    """Spools that keep short logs in memory."""
    return begun(tmp_path, request.param)


@pytest.fixture
def filed(tmp_path: Path) -> Spools:
    """Spools that keep all logs in files."""
    return begun(tmp_path, 0)


def begun(tmp_path: Path, memory: int) -> Spools:
    spools = Spools(tmp_path / "logs", memory)
    spools.begin(KEY, 1, "w1")
    return spools


def content(spools: Spools, fence: int = 1) -> bytes:
    piece = spools.read(KEY, fence, 0, bounds.LOG_RANGE)
    assert piece is not None
    return piece.data


def test_spool_appends_pieces_in_order(spools: Spools) -> None:
    assert spools.append(KEY, 1, 0, TEXT[:4]) == (0, TEXT[:4])
    assert spools.append(KEY, 1, 4, TEXT[4:]) == (4, TEXT[4:])
    assert content(spools) == TEXT


def test_spool_appends_new_bytes_of_repeats_and_overlaps(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT[:6])
    assert spools.append(KEY, 1, 0, TEXT[:6])[1] == b""
    assert spools.append(KEY, 1, 2, TEXT[2:8]) == (6, TEXT[6:8])
    assert content(spools) == TEXT[:8]


def test_spool_drops_a_piece_after_a_gap_and_requests_the_gap(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT[:2])
    assert spools.append(KEY, 1, 5, TEXT[5:])[1] == b""
    assert spools.lacking
    [(worker, wanted)] = spools.wanted(100.0)
    assert (worker, wanted.key, wanted.fence, wanted.offset) == ("w1", KEY, 1, 2)
    assert list(spools.wanted(100.0 + ASK_AGAIN / 2)) == []
    spools.arrived(KEY, 1)
    assert len(list(spools.wanted(100.0))) == 1
    spools.append(KEY, 1, 2, TEXT[2:])
    assert list(spools.wanted(1000.0)) == []
    assert content(spools) == TEXT


def test_spool_request_that_cannot_be_sent_is_repeated_soon(spools: Spools) -> None:
    spools.append(KEY, 1, 5, TEXT[5:])
    [(_, wanted)] = spools.wanted(100.0)
    spools.unsent(wanted)
    assert 100.0 < spools.next_due() < 100.0 + ASK_AGAIN / 2
    assert [again for _, again in spools.wanted(spools.next_due() + 0.001)] == [wanted]


def test_spool_accepts_pieces_in_any_order_and_size(tmp_path: Path) -> None:
    rng = random.Random(7)
    text = rng.randbytes(20_000)
    for fence in range(1, 6):
        spools = Spools(tmp_path)
        spools.begin(KEY, fence, "w1")
        spools.end(KEY, fence, len(text), sha(text), 0.0)
        while spools.incomplete(KEY, fence, 0.0):
            offset = rng.randrange(len(text))
            if rng.random() < 0.3:
                spools.arrived(KEY, fence)
                offset = next((wanted.offset for _, wanted in spools.wanted(1.0)), 0)
            spools.append(KEY, fence, offset, text[offset : offset + rng.randint(0, 3000)])
        assert content(spools, fence) == text
        spools.close()


def test_spool_is_complete_with_size_and_digest(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT)
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 0.0)
    assert not spools.incomplete(KEY, 1, 0.0)
    assert spools.read(KEY, 1, 4, 3) == LogPiece(KEY, 1, 4, b"two", len(TEXT), sha(TEXT), True)
    assert spools.append(KEY, 1, len(TEXT), b"more")[1] == b""


def test_spool_end_shows_that_bytes_are_missing(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT[:4])
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    assert spools.incomplete(KEY, 1, 10.0)
    assert list(spools.wanted(10.0)) == [], "the stream may bring it yet"
    [(_, wanted)] = spools.wanted(10.1)
    assert wanted.offset == 4
    spools.append(KEY, 1, 4, TEXT[4:])
    assert not spools.incomplete(KEY, 1, 10.1)


def test_spool_with_a_wrong_digest_is_read_again_once(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT.upper())
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    [(_, wanted)] = spools.wanted(11.0)
    assert wanted.offset == 0
    spools.append(KEY, 1, 0, TEXT)
    assert not spools.lacking
    assert content(spools) == TEXT


def test_spool_that_stays_wrong_is_not_served(spools: Spools) -> None:
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    for _ in range(2):
        spools.append(KEY, 1, 0, TEXT.upper())
    assert not spools.lacking
    assert spools.read(KEY, 1, 0, 100) is None


def test_spool_whose_rest_never_comes_is_given_up(spools: Spools) -> None:
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    assert spools.incomplete(KEY, 1, 10.0)
    for n in range(1, int(GIVE_UP)):
        assert len(list(spools.wanted(10.0 + n))) == 1
    assert not spools.incomplete(KEY, 1, 10.0 + GIVE_UP)
    assert list(spools.wanted(10.0 + GIVE_UP)) == []
    assert spools.read(KEY, 1, 0, 100) is None


def test_spool_is_not_given_up_because_the_broker_stood_still(spools: Spools) -> None:
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    assert len(list(spools.wanted(10.5))) == 1
    later = 10.5 + 3 * GIVE_UP  # nothing could be received in between
    assert len(list(spools.wanted(later))) == 1
    assert spools.incomplete(KEY, 1, later)
    spools.append(KEY, 1, 0, TEXT)
    assert content(spools) == TEXT


def test_spool_that_grows_is_not_given_up(spools: Spools) -> None:
    """A worker may need long for its last gigabyte over a slow network."""
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    for n in range(4):
        now = 10.0 + n * 0.9 * GIVE_UP
        assert spools.incomplete(KEY, 1, now)
        assert len(list(spools.wanted(now + 1.0))) == 1
        spools.append(KEY, 1, n, TEXT[n : n + 1])
    assert spools.incomplete(KEY, 1, now + 1.9)
    assert not spools.incomplete(KEY, 1, now + 2.0 + GIVE_UP)


def test_spool_of_a_lost_worker_ends_with_what_came(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT[:4])
    spools.append(KEY, 1, 8, TEXT[8:])
    spools.end(KEY, 1, -1, "", 10.0)
    assert not spools.lacking
    assert content(spools) == TEXT[:4]
    assert spools.read(KEY, 1, 4, 9) == LogPiece(KEY, 1, 4, b"", ended=True)


def test_spool_of_a_running_attempt_has_not_ended(spools: Spools) -> None:
    assert spools.read(KEY, 1, 0, 9) == LogPiece(KEY, 1, 0, b"")


def test_spool_may_be_empty(spools: Spools) -> None:
    spools.end(KEY, 1, 0, "", 10.0)
    assert not spools.lacking
    assert spools.read(KEY, 1, 0, 100) == LogPiece(KEY, 1, 0, b"", 0, sha(b""), True)


def test_spool_ignores_attempts_that_never_began(spools: Spools) -> None:
    assert spools.append("b" * 64, 1, 0, TEXT)[1] == b""
    assert spools.append(KEY, 2, 0, TEXT)[1] == b""
    spools.end("b" * 64, 1, 4, sha(TEXT), 0.0)
    assert spools.read("b" * 64, 1, 0, 10) is None


@pytest.mark.parametrize("key", ["../../x", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_spool_file_names_are_keys(spools: Spools, key: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a spool"):
        spools.begin(key, 1, "w1", found=True)
    spools.begin(key, 2, "w1", found=False)
    with pytest.raises(ValueError, match="is not the name of a spool"):
        spools.append(key, 2, 0, b"x" * (SHORT + 1))


def test_spool_reads_odd_ranges(spools: Spools) -> None:
    spools.append(KEY, 1, 0, TEXT)
    assert spools.append(KEY, 1, -3, TEXT)[1] == b""
    for offset, length in ((100, 5), (-1, 5), (0, -5), (0, 0)):
        piece = spools.read(KEY, 1, offset, length)
        assert piece is not None
        assert piece.data == b""
    spools.append(KEY, 1, len(TEXT), b"x" * 2 * bounds.LOG_RANGE)
    piece = spools.read(KEY, 1, 0, 10**12)
    assert piece is not None
    assert len(piece.data) == bounds.LOG_RANGE


def test_spool_of_the_latest_attempt_is_read_by_default(spools: Spools) -> None:
    spools.begin(KEY, 3, "w2")
    spools.append(KEY, 1, 0, b"old")
    spools.append(KEY, 3, 0, b"new")
    piece = spools.read(KEY, 0, 0, 10)
    assert piece is not None
    assert (piece.fence, piece.data) == (3, b"new")


def test_spool_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = Spools(tmp_path)
    first.begin(KEY, 1, "w1")
    first.append(KEY, 1, 0, TEXT[:4])
    first.close()
    second = Spools(tmp_path)
    second.begin(KEY, 1, "w1")
    assert second.append(KEY, 1, 0, TEXT) == (4, TEXT[4:])
    second.end(KEY, 1, len(TEXT), sha(TEXT), 0.0)
    second.digest()
    assert not second.lacking
    assert content(second) == TEXT


def test_spool_files_that_are_open_are_few(tmp_path: Path) -> None:
    spools = Spools(tmp_path, memory=0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    many = 3 * OPEN_FILES
    for n in range(many):
        spools.begin(f"{n:064x}", 1, "w1")
    for part in range(2):
        for n in range(many):
            spools.append(f"{n:064x}", 1, part * 2, b"%d\n" % part)
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES  # noqa: PTH208
    for n in range(many):
        piece = spools.read(f"{n:064x}", 1, 0, 10)
        assert piece is not None
        assert piece.data == b"0\n1\n"
    spools.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_spool_on_a_full_disk_is_lost_but_streamed(
    filed: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert filed.append(KEY, 1, 0, TEXT[:4]) == (0, TEXT[:4])
    assert filed.append(KEY, 1, 4, TEXT[4:]) == (4, TEXT[4:])
    assert filed.read(KEY, 1, 0, 10) is None
    filed.end(KEY, 1, len(TEXT), sha(TEXT), 0.0)
    assert not filed.incomplete(KEY, 1, 0.0)


def test_spool_is_removed_when_it_is_old(filed: Spools, tmp_path: Path) -> None:
    filed.begin(KEY, 2, "w1")
    filed.append(KEY, 1, 0, TEXT)
    filed.append(KEY, 2, 0, TEXT)
    filed.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    filed.sweep(10.0 + KEEP / 2)
    assert content(filed, 1) == TEXT
    filed.sweep(10.0 + KEEP)
    assert filed.read(KEY, 1, 0, 10) is None
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [f"{KEY}.2"]


def test_spool_of_an_ended_attempt_may_be_removed_by_closing(filed: Spools, tmp_path: Path) -> None:
    filed.begin(KEY, 2, "w1")
    for fence in (1, 2):
        filed.append(KEY, fence, 0, TEXT)
    filed.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    filed.close(forget=True)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [f"{KEY}.2"]


def test_spool_file_that_is_removed_does_not_return_with_a_hole(
    filed: Spools, tmp_path: Path
) -> None:
    filed.append(KEY, 1, 0, TEXT[:4])
    filed.close()
    (tmp_path / "logs" / f"{KEY}.1").unlink()
    assert filed.append(KEY, 1, 4, TEXT[4:])[1] == TEXT[4:], "the stream goes on"
    assert filed.read(KEY, 1, 0, 10) is None


def test_spool_files_of_former_runs_are_removed(filed: Spools, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    filed.append(KEY, 1, 0, TEXT)
    for name in (f"{'b' * 64}.1", f"{'c' * 64}.1", "notes"):
        (logs / name).write_bytes(b"x")
    for name in (f"{'b' * 64}.1", f"{KEY}.1", "notes"):
        os.utime(logs / name, (0, 0))
    filed.sweep_files()
    left = {path.name for path in logs.iterdir()}
    assert left == {f"{KEY}.1", f"{'c' * 64}.1", "notes"}


def test_spool_of_a_short_log_has_no_file(tmp_path: Path) -> None:
    spools = Spools(tmp_path, memory=2 * SHORT)
    for fence in range(1, 5):
        spools.begin(KEY, fence, "w1", found=False)
    spools.append(KEY, 1, 0, TEXT)
    spools.append(KEY, 2, 0, bytes(SHORT))
    spools.append(KEY, 3, 0, bytes(SHORT))  # too much, together with the others
    spools.append(KEY, 4, 0, TEXT)
    assert files(tmp_path) == ["3"]
    spools.append(KEY, 2, SHORT, TEXT)
    assert files(tmp_path) == ["2", "3"]
    assert [content(spools, fence)[-len(TEXT) :] for fence in (1, 2, 4)] == [TEXT] * 3
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    spools.close()
    assert files(tmp_path) == ["2", "3", "4"], "attempts that go on find theirs there again"


def test_spool_memory_is_freed_by_restarts_and_removals(tmp_path: Path) -> None:
    spools = Spools(tmp_path, memory=len(TEXT))
    for fence in range(1, 4):
        spools.begin(KEY, fence, "w1", found=False)
    spools.append(KEY, 1, 0, TEXT.upper())
    spools.end(KEY, 1, len(TEXT), sha(TEXT), 10.0)
    spools.append(KEY, 1, 0, TEXT)
    assert content(spools, 1) == TEXT
    spools.sweep(10.0 + KEEP)
    spools.append(KEY, 2, 0, TEXT)
    assert files(tmp_path) == []
    spools.append(KEY, 3, 0, TEXT)
    assert files(tmp_path) == ["3"]


def files(directory: Path) -> list[str]:
    """The fences of spools with files."""
    return sorted(path.suffix[1:] for path in directory.iterdir())
