"""Locks among processes and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from children import child_environment

from fabric.host.locks import Locks, locked, no_wait


def test_locks_that_are_removed_leave_no_files_and_are_held_by_one(tmp_path: Path) -> None:
    code = """
import sys
from contextlib import ExitStack
from pathlib import Path
from fabric.host.locks import locked
top = Path(sys.argv[1])
for number in range(300):
    with locked(top / "locks" / f"{number % 3}", remove=True):
        (top / f"only-{number % 3}").mkdir()  # fails if another has the lock
        (top / f"only-{number % 3}").rmdir()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    many = [subprocess.Popen(command, env=child_environment()) for _ in range(4)]
    assert [one.wait(60) for one in many] == [0] * 4
    assert list((tmp_path / "locks").iterdir()) == []


def test_lock_file_that_was_renamed_is_no_longer_a_lock(tmp_path: Path) -> None:
    lock, waits = tmp_path / "lock", 0

    def wait() -> None:
        nonlocal waits
        waits += 1
        if waits == 2:
            lock.rename(tmp_path / "done")
            lock.touch()
            first.close()

    first = ExitStack()
    first.enter_context(locked(lock))
    with locked(lock, wait=wait), pytest.raises(BlockingIOError), locked(lock, wait=no_wait):
        pass
    assert waits == 2


def test_lock_without_create_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "lock", create=False):
        pass


def test_locks_are_held_by_name(tmp_path: Path) -> None:
    one, two = Locks(tmp_path / "lock"), Locks(tmp_path / "lock")
    held = one.take("a")
    assert held is not None
    assert two.take("a") is None
    assert one.take("a") is None
    other = two.take("b")
    assert other is not None
    os.close(held)
    again = two.take("a")
    assert again is not None
    os.close(again)
    os.close(other)


def test_locks_may_be_shared(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "lock")
    held = [locks.take("a", shared=True) for _ in range(2)]
    assert locks.take("a") is None
    for fd in held:
        assert fd is not None
        os.close(fd)
    fd = locks.take("a")
    assert fd is not None
    os.close(fd)


def test_locks_are_claimed_by_their_only_sharer(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "lock")
    one, two = locks.open(), locks.open()
    for fd in (one, two):
        locks.share(fd, "a")
    assert not locks.claim(one, "a")
    locks.release(two, "a")
    assert locks.claim(one, "a")
    assert locks.take("a", shared=True) is None
    locks.release(one, "a")
    assert locks.claim(two, "a")
    os.close(one)
    os.close(two)
