"""The journal over restarts of the broker."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from small_disk import on_small_disk

from fabric.bounds import ATTEMPTS_KEPT
from fabric.controller.history import AttemptHistory, EndedAttempt, phases_of
from fabric.controller.journal import Journal
from fabric.controller.journal_file import REQUESTS_KEPT, STEPS_KEPT, Storage
from fabric.controller.journal_writer import AT_ONCE
from fabric.errors import MachineFault
from fabric.scheduling.events import Drained, Ended, Learned, Opened, Remembered
from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder, Outcome, StepState, Update


class Warnings(list[str]):
    """The texts of all warnings."""

    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


def rows(path: Path, question: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        found = db.execute(question).fetchall()
    db.close()
    return found


def unfinished(journal: Journal) -> list[BuildOrder | BuildGraph]:
    """The open requests of a journal."""
    return [
        each.event
        for each in journal.stored_requests()
        if isinstance(each.event, BuildOrder | BuildGraph)
    ]


def finished(journal: Journal) -> list[Remembered]:
    """The ended requests of a journal."""
    return [each.event for each in journal.stored_requests() if isinstance(each.event, Remembered)]


def ended(n: int, outcome: Outcome | None) -> EndedAttempt:
    event = Ended(f"{n:064x}", n, "w1", "chunk", f"c{n}", "x86_64", 0.0, outcome)
    return AttemptHistory(n).add(event, 1.0)


def ended_event(
    n: int, outcome: Outcome | None, phases: tuple[tuple[str, float], ...] = ()
) -> Ended:
    return Ended(f"{n:064x}", n, "w1", "chunk", f"c{n}", "x86_64", 10.0, outcome, phases)


def test_journal_keeps_durations(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "state" / "journal.sqlite"
    first = Journal(path, warnings)
    assert first.durations == {}
    first.learned(Learned("chunk", "zlib", "x86_64", 12.5))
    first.learned(Learned("chunk", "zlib", "x86_64", 10.0))
    first.learned(Learned("system", "zlib", "x86_64", 3.0))
    first.close()
    second = Journal(path, warnings)
    assert second.durations == {
        ("chunk", "zlib", "x86_64"): 10.0,
        ("system", "zlib", "x86_64"): 3.0,
    }
    second.close()
    assert warnings == []


def test_journal_epochs_grow_over_runs_and_over_a_lost_file(
    tmp_path: Path, warnings: Warnings
) -> None:
    path = tmp_path / "journal.sqlite"
    epochs = []
    for run in range(3):
        journal = Journal(path, warnings)
        epochs.append(journal.epoch)
        assert journal.first == (run == 0)
        journal.close()
    assert epochs == sorted(set(epochs))
    for each in tmp_path.iterdir():
        each.unlink()
    with sqlite3.connect(tmp_path / "other") as db:  # as if it were a year old
        assert db
    db.close()
    journal = Journal(path, warnings)
    assert journal.epoch >= epochs[0]
    journal.close()


def test_journal_is_shared_by_two_brokers(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journals = [Journal(path, warnings), Journal(path, warnings)]
    assert journals[0].epoch != journals[1].epoch

    def write(number: int) -> None:
        for n in range(200):
            journals[number].learned(Learned("chunk", f"{number}-{n}", "x86_64", 1.0))

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for journal in journals:
        journal.close()
    assert rows(path, "SELECT count(*) FROM durations") == [(400,)]
    assert warnings == []


def test_journal_keeps_attempts_and_their_results(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    journal.ended(ended(1, Outcome("k", 1, "failed", message="no", seconds=2.0)))
    journal.ended(ended(2, None))
    journal.close()
    assert rows(path, "SELECT name, worker, result, seconds, message FROM attempts") == [
        ("c1", "w1", "failed", 2.0, "no"),
        ("c2", "w1", "lost", 0.0, ""),
    ]


def test_journal_writes_many_rows_in_their_order(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    for n in range(2 * AT_ONCE + 7):
        journal.ended(ended(n, Outcome("k", n, "done", seconds=n / 2)))
        journal.learned(Learned("chunk", f"c{n % (AT_ONCE + 1)}", "x86_64", float(n)))
        journal.drained(Drained("w1", on=n % 2 == 0))
    journal.close()
    assert rows(path, "SELECT fence, name, seconds FROM attempts ORDER BY rowid") == [
        (n, f"c{n}", n / 2) for n in range(2 * AT_ONCE + 7)
    ]
    again = Journal(path, warnings)
    assert again.durations == {
        ("chunk", f"c{n % (AT_ONCE + 1)}", "x86_64"): float(n) for n in range(2 * AT_ONCE + 7)
    }
    assert again.drained_workers == {"w1"}
    again.close()


def test_journal_restores_attempts_of_former_runs(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    clock = 5000.0
    storage = Storage(clock=lambda: clock)
    journal = Journal(path, warnings, storage=storage)
    history = AttemptHistory(journal.epoch)
    phases = (("fetch", 10.5), ("build", 12.0))
    first = history.add(ended_event(1, Outcome("k", 1, "failed", message="no"), phases), 20.0)
    second = history.add(ended_event(2, None), 30.0)
    for each in (first, second):
        journal.ended(each)
        clock += 10.0
    journal.close()
    clock = 6000.0
    again = Journal(path, warnings, storage=storage)
    # on the clock of the next run it is 100, and 1000 seconds have passed since the first ended
    restored = list(again.stored_attempts(100.0))
    assert [phases_of(each) for each in restored] == [(("fetch", 0.5), ("build", 2.0)), ()]
    assert [(each.began, each.ended) for each in restored] == [(-910.0, -900.0), (-910.0, -890.0)]
    assert [each.result for each in restored] == ["failed", "lost"]
    assert [each.number for each in restored] == [first.number, second.number]
    later = AttemptHistory(again.epoch, restored).add(ended_event(3, None), 101.0)
    assert later.number > second.number
    again.close()
    assert warnings == []


def test_journal_leaves_out_attempts_that_are_damaged(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    for n in range(1, 10):
        journal.ended(ended(n, None))
    journal.close()
    with sqlite3.connect(path) as db:
        for n, value in enumerate(
            (
                "key = 'x'",
                "at = NULL",
                "phases = x'ff'",
                "result = 'odd'",
                "at = 9e99",
            )
        ):
            db.execute(f"UPDATE attempts SET {value} WHERE fence = ?", (n + 2,))
    db.close()
    again = Journal(path, warnings)
    assert [each.fence for each in again.stored_attempts(0.0)] == [1, 7, 8, 9]
    again.close()
    assert warnings == []


#: The tables of the journal's file of version 3, with an attempt and a request.
VERSION_3 = """
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY);
CREATE TABLE durations (
    kind TEXT, name TEXT, arch TEXT, seconds REAL, at REAL,
    PRIMARY KEY (kind, name, arch)) WITHOUT ROWID;
CREATE TABLE attempts (
    key TEXT, fence INTEGER, worker TEXT, kind TEXT, name TEXT, arch TEXT,
    result TEXT, seconds REAL, message TEXT, at REAL);
CREATE TABLE requests (
    id TEXT PRIMARY KEY, title TEXT, requester TEXT, intent BLOB, state TEXT, opened REAL,
    closed REAL, message TEXT, done INTEGER, cached INTEGER, failed INTEGER, total INTEGER,
    outcome BLOB) WITHOUT ROWID;
CREATE TABLE secrets (secret BLOB);
CREATE TABLE drained (worker TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO epochs VALUES (7);
INSERT INTO drained VALUES ('w9');
INSERT INTO attempts VALUES (
    printf('%064d', 1), 5, 'w1', 'chunk', 'zlib', 'x86_64', 'done', 4.0, '', 990.0);
"""


@pytest.mark.parametrize("version", [3, 0])
def test_journal_of_version_3_is_taken_over(
    tmp_path: Path, warnings: Warnings, version: int
) -> None:
    """Version 0: its broker was killed while it made the tables."""
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_3)
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    storage = Storage(clock=lambda: 1000.0)
    journals = [Journal(path, warnings, storage=storage) for _ in range(2)]
    assert [each.epoch for each in journals] == [8, 9]
    assert all(each.drained_workers == {"w9"} for each in journals)
    [old] = journals[1].stored_attempts(0.0)
    assert (old.name, old.number, old.began, old.ended, old.phases) == (
        "zlib",
        1,
        -14.0,
        -10.0,
        b"",
    )
    journals[0].ended(ended(8, None))
    for each in journals:
        each.close()
    again = Journal(path, warnings, storage=storage)
    assert [each.fence for each in again.stored_attempts(0.0)] == [5, 8]
    again.close()
    assert warnings == []


def test_journal_is_taken_over_by_two_brokers_at_once(tmp_path: Path, warnings: Warnings) -> None:
    for n in range(20):
        path = tmp_path / f"journal{n}.sqlite"
        with sqlite3.connect(path) as db:
            db.executescript(VERSION_3)
            db.execute("PRAGMA user_version = 3")
        db.close()
        begin = threading.Barrier(2)
        epochs: list[int] = []

        def take_over(path: Path, begin: threading.Barrier, epochs: list[int]) -> None:
            begin.wait()
            journal = Journal(path, warnings)
            epochs.append(journal.epoch)
            journal.close()

        arguments = (path, begin, epochs)
        threads = [threading.Thread(target=take_over, args=arguments) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(epochs) == [8, 9]
    assert warnings == []


def test_journal_drops_old_attempts(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    for n in range(ATTEMPTS_KEPT + 100):
        journal.ended(ended(n, None))
    journal.close(30.0)
    assert rows(path, "SELECT count(*), max(fence) FROM attempts") == [
        (ATTEMPTS_KEPT, ATTEMPTS_KEPT + 99)
    ]


def opened(request: str, title: str = "") -> Opened:
    intent = BuildOrder(PROTOCOL, request, title, "refs/x", "c" * 40, "s.morph", requester="alice")
    return Opened(request, title, intent)


def test_journal_keeps_open_requests(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    graph = BuildGraph(PROTOCOL, "r3", "three", (), (), detach=True)
    for what in (opened("r1", "one"), opened("r2", "two"), Opened("r3", "three", graph)):
        journal.opened(what)
    journal.closed(Update("r1", 5, "done"))
    journal.close()
    again = Journal(path, warnings)
    assert unfinished(again) == [opened("r2", "two").intent, graph]
    again.opened(opened("r2", "two"))  # restored
    again.close()
    assert rows(path, "SELECT id, state FROM requests ORDER BY id") == [
        ("r1", "done"),
        ("r2", "open"),
        ("r3", "open"),
    ]
    assert rows(path, "SELECT count(*) FROM requests WHERE intent IS NULL") == [(1,)]


def test_journal_sets_a_damaged_request_aside(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    journal.opened(opened("r1"))
    journal.opened(opened("r2"))
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE requests SET intent = x'80' WHERE id = 'r1'")
    db.close()
    again = Journal(path, warnings)
    assert unfinished(again) == [opened("r2").intent]
    again.close()
    [file] = tmp_path.glob("journal.sqlite.request-*")
    assert file.read_bytes() == b"\x80"
    assert file.stat().st_mode & 0o777 == 0o600
    assert warnings == [
        f"request r1 cannot be taken up again, and is set aside, in {file}: ValidationError: Object"
        " missing required field `t`"
    ]
    assert unfinished(Journal(path, warnings)) == [opened("r2").intent]
    assert len(warnings) == 1, "once"


def test_journal_keeps_the_ends_of_requests(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    steps = (StepState("a" * 64, "done"), StepState("b" * 64, "failed", message="no"))
    failed = Update("r1", 7, "failed", steps, message="b failed", title="one")
    large = Update("r2", 8, "done", tuple(StepState(f"{n:064x}", "done") for n in range(9000)))
    for request in ("r1", "r2", "r3", "r4"):
        journal.opened(opened(request, request))
    journal.closed(failed)
    journal.closed(large)
    journal.forgotten("r4")
    journal.close()
    again = Journal(path, warnings)
    told = finished(again)
    assert [each.outcome for each in told] == [failed, large]
    assert {each.requester for each in told} == {"alice"}
    assert all(0.0 <= each.ago < 60.0 for each in told)
    assert unfinished(again) == [opened("r3", "r3").intent]
    again.close()
    assert warnings == []


def test_journal_drops_old_requests(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    few = tuple(StepState(f"{n:064x}", "done") for n in range(10))
    many = few * (STEPS_KEPT // len(few))
    for n, steps in enumerate((few, many, many, *[few] * REQUESTS_KEPT)):
        journal.opened(opened(f"r{n}"))
        journal.closed(Update(f"r{n}", n, "done", steps))
    journal.close(30.0)
    again = Journal(path, warnings)
    assert [each.outcome.version for each in finished(again)] == [*range(3, 3 + REQUESTS_KEPT)]
    for n in (1000, 1001):
        again.opened(opened(f"r{n}"))
        again.closed(Update(f"r{n}", n, "done", many))
    again.close(30.0)
    last = Journal(path, warnings)
    assert [each.outcome.version for each in finished(last)] == [1001], "as the steps are many"
    last.close()


def test_journal_keeps_drained_workers(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    for worker, on in (("w1", True), ("w2", True), ("w1", False), ("w2", True)):
        journal.drained(Drained(worker, on))
    journal.close()
    again = Journal(path, warnings)
    assert again.drained_workers == {"w2"}
    again.close()


def test_journal_statement_is_durable_when_it_is_on_the_disk(
    tmp_path: Path, warnings: Warnings
) -> None:
    path = tmp_path / "journal.sqlite"
    kept = threading.Event()
    journal = Journal(path, warnings, kept.set)
    journal.learned(Learned("chunk", "zlib", "x86_64", 1.0))
    journal.opened(opened("r1"))
    journal.flush()
    assert kept.wait(20.0)
    assert journal.durable == journal.appended == 1
    assert rows(path, "SELECT id FROM requests") == [("r1",)]
    assert rows(path, "SELECT name FROM durations") == [("zlib",)], "taken along"
    journal.close()


def test_journal_of_the_former_version_keeps_its_history(
    tmp_path: Path, warnings: Warnings
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    journal.learned(Learned("chunk", "zlib", "x86_64", 1.0))
    journal.close()
    with sqlite3.connect(path) as db:
        db.executescript(
            "DROP TABLE requests; DROP TABLE drained; PRAGMA user_version = 1;"
            "CREATE TABLE requests (id TEXT PRIMARY KEY, title TEXT, submit BLOB, state TEXT,"
            " opened REAL, closed REAL) WITHOUT ROWID;"
        )
    db.close()
    again = Journal(path, warnings)
    assert again.durations == {("chunk", "zlib", "x86_64"): 1.0}
    again.opened(opened("r1"))
    again.close()
    assert rows(path, "SELECT id FROM requests") == [("r1",)]
    assert warnings == []


@pytest.mark.parametrize("needed", [False, True])
def test_journal_drops_only_requests_that_no_broker_restores(
    tmp_path: Path, warnings: Warnings, needed: bool
) -> None:
    path = tmp_path / "journal.sqlite"
    before = Storage(clock=lambda: 0.0)  # long ago, or with a wrong clock
    journal = Journal(path, warnings, needed=needed, storage=before)
    journal.opened(opened("r1"))
    journal.close()
    journal = Journal(path, warnings, needed=needed)
    journal.opened(opened("r2"))
    journal.close()
    last = Journal(path, warnings, needed=needed)
    kept = [opened("r1").intent, opened("r2").intent]
    assert unfinished(last) == (kept if needed else kept[1:])
    last.close()


@pytest.mark.parametrize(
    "damage", [b"this is no database, it is a poem\n" * 100, b"SQLite format 3\0"]
)
def test_journal_moves_a_damaged_file_aside(
    tmp_path: Path, warnings: Warnings, damage: bytes
) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(damage)
    journal = Journal(path, warnings)
    journal.learned(Learned("chunk", "zlib", "x86_64", 1.0))
    journal.close()
    [warning] = warnings
    assert "beginning a new one" in warning
    [aside] = tmp_path.glob("journal.sqlite.damaged-*")
    assert aside.read_bytes() == damage
    assert rows(path, "SELECT name FROM durations") == [("zlib",)]


def test_journal_with_damage_in_the_middle(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings)
    for n in range(2000):
        journal.learned(Learned("chunk", f"c{n}", "x86_64", 1.0))
    journal.close()
    content = bytearray(path.read_bytes())
    content[5000:-100] = b"\xa5" * len(content[5000:-100])
    path.write_bytes(content)
    again = Journal(path, warnings)
    assert not again.first, "there was one, whatever it was"
    again.learned(Learned("chunk", "new", "x86_64", 1.0))
    again.close()
    assert len(warnings) == 1
    assert list(tmp_path.glob("journal.sqlite.damaged-*"))


def test_journal_that_is_not_needed_may_be_unwritable(tmp_path: Path, warnings: Warnings) -> None:
    (tmp_path / "state").write_text("in the way")
    path = tmp_path / "state" / "journal.sqlite"
    with pytest.raises(MachineFault, match=f"would be forgotten: {path}: File exists"):
        Journal(path, warnings)
    journal = Journal(path, warnings, needed=False)
    journal.learned(Learned("chunk", "zlib", "x86_64", 1.0))
    assert journal.epoch > 0
    assert not journal.first, "who knows"
    journal.close()
    assert "going on without a journal" in warnings[0]


def test_journal_forgets_nothing_on_a_full_disk(tmp_path: Path) -> None:
    """A broker that would forget requests must not start."""
    code = f"""
        import os
        from pathlib import Path
        from fabric.errors import MachineFault
        from fabric.controller.journal import Journal
        path = Path({str(tmp_path)!r}, "journal.sqlite")
        Journal(path, print).close()
        with Path({str(tmp_path)!r}, "ballast").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        for needed in (True, False):
            try:
                Journal(path, print, needed=needed)
            except MachineFault as error:
                print("refused:", error)
        Path({str(tmp_path)!r}, "ballast").unlink()
        Journal(path, print).close()
    """
    said = on_small_disk("1m", tmp_path, code)
    assert len(said) == 2
    for line in said:
        assert line.startswith("refused: without the journal, what was ordered would be forgotten")
        assert f" {tmp_path}/journal.sqlite: " in line
        assert line.endswith("; make room on that disk")


def test_journal_of_a_later_version_is_an_error(tmp_path: Path, warnings: Warnings) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MachineFault, match="it has version 99, not 4; move it away"):
        Journal(path, warnings)
    Journal(path, warnings, needed=False).close()
    assert "version 99" in warnings[0]
    assert rows(path, "PRAGMA user_version") == [(99,)], "left as it is"
