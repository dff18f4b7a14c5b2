"""An attempt at a job ends after every kind of error."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from building_kit import Kit

from fabric.building.attempt import Attempt
from fabric.config import WorkerSettings
from fabric.jobs import SMALL

KEY = "a" * 64


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(KEY, 1, msgspec.Raw(b"\x80"), tmp_path / "spool", lambda: None)


def test_attempt_of_an_unknown_job_is_a_fault(attempt: Attempt, kit: Kit, tmp_path: Path) -> None:
    outcome = attempt.run(kit.workspace, WorkerSettings(), "w1", tmp_path / "none")
    assert outcome.result == "fault"
    assert outcome.message.startswith("w1 does not understand this job: ")
    assert outcome.log_size == attempt.log.size()
    attempt.log.discard()


def test_attempt_with_an_unreadable_log_ends(attempt: Attempt, kit: Kit, tmp_path: Path) -> None:
    """The log is a file whose descriptor cannot be read, as on a failing disk."""
    attempt.log.write("x" * 2 * SMALL)
    blind = os.open(attempt.log.path, os.O_WRONLY | os.O_APPEND)
    os.dup2(blind, attempt.log._fd)
    os.close(blind)
    outcome = attempt.run(kit.workspace, WorkerSettings(), "w1", tmp_path / "none")
    attempt.log.discard()
    assert (outcome.key, outcome.fence, outcome.result) == (KEY, 1, "fault")
    assert outcome.message == "OSError at the end of the attempt: [Errno 9] Bad file descriptor"
    assert (outcome.log_size, outcome.log_sha256) == (0, "")
