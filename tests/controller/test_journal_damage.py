"""Damaged rows of a journal."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fabric.controller.journal import Journal
from fabric.scheduling.events import Drained, Learned, Opened, Remembered
from fabric.wire.messages import PROTOCOL, BuildGraph, Update


def opened(id: str) -> Opened:
    return Opened(id, "a title", BuildGraph(PROTOCOL, id, "a title", (), (), requester="alice"))


DAMAGE = [
    "UPDATE requests SET intent = NULL WHERE id = 'r1'",
    "UPDATE requests SET intent = 7 WHERE id = 'r1'",
    "UPDATE requests SET intent = zeroblob(1000000) WHERE id = 'r1'",
    "UPDATE requests SET id = CAST(x'ff2f' AS TEXT) WHERE id = 'r1'",
    "UPDATE requests SET state = 'opxn' WHERE id = 'r1'",
    "UPDATE requests SET state = x'00', intent = 'text' WHERE id = 'r1'",
    "UPDATE requests SET outcome = 'text' WHERE id = 'r0'",
    "UPDATE requests SET opened = 'long ago' WHERE id = 'r0'",
    "UPDATE requests SET outcome = (SELECT outcome FROM requests WHERE id = 'r9') WHERE id = 'r0'",
    "UPDATE requests SET title = x'ff', requester = CAST(x'ff' AS TEXT)",
    "UPDATE epochs SET epoch = 9223372036854775807",
    "UPDATE epochs SET epoch = -5",
    "UPDATE secrets SET secret = 'text'",
    "UPDATE durations SET seconds = 'long'",
    "UPDATE durations SET seconds = 1e999",
    "UPDATE durations SET name = x'ff', kind = 7",
    "UPDATE drained SET worker = x'ff'",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_journal_damaged_row_affects_no_other(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, said.append)
    for id in ("r0", "r9"):
        journal.opened(opened(id))
        journal.closed(Update(id, 1, "done"))
    journal.opened(opened("r1"))
    journal.opened(opened("r2"))
    journal.learned(Learned("chunk", "zlib", "x86_64", 12.5))
    journal.drained(Drained("w1", True))
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    for _ in range(2):
        again = Journal(path, said.append)
        found = [record.event for record in again.stored_requests()]
        assert opened("r2").intent in found
        over = [each.outcome.request for each in found if isinstance(each, Remembered)]
        assert "r9" in over
        assert 0 < again.epoch < 2**32
        assert len(again.secret) == 32
        assert set(again.durations.values()) <= {12.5}
        assert again.drained_workers <= {"w1"}
        again.opened(opened("r2"))
        again.close()
    assert len(said) <= 1
