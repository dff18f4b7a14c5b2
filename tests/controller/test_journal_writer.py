"""The journal while its file cannot be written."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from fabric.controller.history import AttemptHistory
from fabric.controller.journal import Journal
from fabric.controller.journal_file import Storage, connect
from fabric.controller.journal_writer import BACKLOG
from fabric.scheduling.events import Drained, Ended, Learned, Opened
from fabric.wire.messages import PROTOCOL, BuildOrder, Update


def rows(path: Path, question: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        found = db.execute(question).fetchall()
    db.close()
    return found


def opened(request: str) -> Opened:
    intent = BuildOrder(PROTOCOL, request, "", "refs/x", "c" * 40, "s.morph", requester="alice")
    return Opened(request, "", intent)


class Hindrance:
    """Locks the file of a journal for a while."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fabric.controller.journal_file.PATIENCE", 0.02)
        monkeypatch.setattr("fabric.controller.journal_writer.RETRY", 0.05)
        self.woken = threading.Event()
        self._path = path

    def begin(self) -> None:
        self._other = sqlite3.connect(self._path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self.woken.clear()
        self._other.execute("ROLLBACK")
        self._other.close()

    def news(self) -> None:
        assert self.woken.wait(20.0)


@pytest.fixture
def hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hindrance:
    return Hindrance(tmp_path / "journal.sqlite", monkeypatch)


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_journal_writer_retries_and_is_not_durable_meanwhile(
    tmp_path: Path, warnings: list[str], hindrance: Hindrance
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings.append, hindrance.woken.set)
    hindrance.begin()
    journal.learned(Learned("chunk", "zlib", "x86_64", 1.0))
    journal.drained(Drained("w1", on=True))
    journal.flush()
    hindrance.news()
    assert journal.update_status() == []
    assert journal.error == f"{path}: database is locked"
    assert journal.durable == 0
    journal.closed(Update("r1", 1, "done"))
    assert not journal.is_durable("r1")
    journal.flush()
    hindrance.end()
    hindrance.news()
    assert journal.update_status() == []
    assert journal.error == ""
    journal.close(20.0)
    assert journal.update_status() == []
    assert journal.durable == 2
    assert journal.is_durable("r1")
    assert rows(path, "SELECT worker FROM drained") == [("w1",)]
    assert rows(path, "SELECT name FROM durations") == [("zlib",)]
    assert [text.partition(":")[0] for text in warnings] == [
        "the journal cannot be written",
        "the journal is written again",
    ]


def test_journal_reports_unwritten_requests_once(
    tmp_path: Path, warnings: list[str], hindrance: Hindrance
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings.append, hindrance.woken.set)
    journal.opened(opened("r1"))
    journal.flush()
    hindrance.news()
    hindrance.woken.clear()
    hindrance.begin()
    journal.closed(Update("r1", 1, "done"))
    for request in ("r2", "r3"):
        journal.opened(opened(request))
    journal.closed(Update("r3", 2, "failed"))
    journal.flush()
    hindrance.news()
    assert journal.update_status() == ["r2", "r3"], "r1 is known to have begun"
    for request in ("r2", "r3"):
        journal.forgotten(request)
    journal.flush()
    assert journal.update_status() == []
    hindrance.end()
    hindrance.news()
    journal.close(20.0)
    assert rows(path, "SELECT id, state FROM requests") == [("r1", "done")]


def test_journal_writer_bounds_the_backlog_of_histories(
    tmp_path: Path, warnings: list[str], hindrance: Hindrance
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings.append, hindrance.woken.set)
    hindrance.begin()
    history = AttemptHistory(journal.epoch)
    journal.drained(Drained("w1", on=True))
    for n in range(BACKLOG + 10):
        ended = Ended("k", n, "w1", "chunk", "c", "x86_64", 0.0, None)
        journal.ended(history.add(ended, 1.0))
    journal.flush()
    hindrance.news()
    hindrance.end()
    journal.close(20.0)
    assert rows(path, "SELECT count(*), min(fence) FROM attempts") == [(BACKLOG, 10)]
    assert rows(path, "SELECT worker FROM drained") == [("w1",)]


def test_journal_writer_blocks_nothing_if_not_needed(
    tmp_path: Path, warnings: list[str], hindrance: Hindrance
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, warnings.append, hindrance.woken.set, needed=False)
    hindrance.begin()
    journal.opened(opened("r1"))
    journal.flush()
    hindrance.news()
    assert journal.update_status() == []
    assert journal.error == ""
    assert journal.durable == 1
    hindrance.end()
    journal.close(20.0)
    assert rows(path, "SELECT id FROM requests") == [("r1",)]


@pytest.mark.parametrize("needed", [True, False])
def test_journal_that_is_not_needed_waits_for_no_disk(
    tmp_path: Path, warnings: list[str], needed: bool
) -> None:
    """No reply waits for an entry, and no entry for the disk."""
    opened_by: list[sqlite3.Connection] = []

    def connected(path: str) -> sqlite3.Connection:
        opened_by.append(connect(path))
        return opened_by[-1]

    storage = Storage(connect=connected, threaded=False)
    journal = Journal(tmp_path / "journal.sqlite", warnings.append, needed=needed, storage=storage)
    (full, normal) = (2, 1)
    [(how,)] = opened_by[0].execute("PRAGMA synchronous")
    assert how == (full if needed else normal)
    journal.opened(opened("r1"))
    journal.update_status()
    assert journal.is_durable("r1") != needed
    journal.flush()
    journal.writer.step()
    journal.update_status()
    assert journal.is_durable("r1")
    journal.close(20.0)
