"""The jobserver moves tokens between real FIFOs, as builds take and return them."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import child_environment

from fabric.host.jobserver import Jobserver, _Build, joined

#: Seconds after which a token that was not offered counts as refused.
LONG = 0.5
#: Seconds for a token that comes, on a busy machine.
PATIENT = 20.0


class Build:
    """A build, which opens its FIFO as make does."""

    def __init__(self, fifo: Path) -> None:
        self._read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self._write = os.open(fifo, os.O_WRONLY)
        self.jobs = 1

    def take(self, most: int = 100, wait: float = LONG) -> int:
        """Take tokens, at most so many; return the number of jobs that it may run."""
        for _ in range(most):
            if not select.select([self._read], [], [], wait)[0]:
                break
            with contextlib.suppress(BlockingIOError):
                self.jobs += len(os.read(self._read, 1))
        return self.jobs

    def put(self, count: int = 1) -> None:
        """Return tokens."""
        os.write(self._write, b"+" * count)
        self.jobs -= count

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Machine:
    """A machine of four cores, with a jobserver in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = Jobserver(root / "jobserver", 4)
        self.address = root / "jobserver"
        self.stopped = False
        self.steps = 0
        self.used = 0.0  # seconds of CPU
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self._count = 0

    @contextlib.contextmanager
    def build(self, most: int = 9) -> Iterator[Build]:
        self._count += 1
        with joined(self.address, self.root / f"fifo-{self._count}", most) as fifo:
            assert fifo is not None
            build = Build(fifo)
            try:
                yield build
            finally:
                build.close()
        assert not fifo.exists()

    def close(self) -> None:
        self.stopped = True
        with joined(self.address, self.root / "last", 1):  # wakes it
            self.thread.join()
        self.server.close()

    def _run(self) -> None:
        while not self.stopped:
            self.server.step(self.server.wait)
            self.steps += 1
            self.used = time.thread_time()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def test_jobserver_gives_one_build_all_cores(machine: Machine) -> None:
    with machine.build() as build:
        assert build.take() == 4
        build.put(3)
        assert build.take() == 4


def test_jobserver_gives_a_build_no_more_than_its_limit(machine: Machine) -> None:
    with machine.build(most=2) as build:
        assert build.take() == 2
    with machine.build(most=1) as build:
        assert build.take() == 1


def test_jobserver_takes_the_tokens_of_ended_builds_back(machine: Machine) -> None:
    for _ in range(3):
        with machine.build() as build:
            assert build.take() == 4
    code = (
        "import sys; from pathlib import Path; from fabric.host.jobserver import joined\n"
        "with joined(Path(sys.argv[1]), Path(sys.argv[2]), 9) as fifo:\n"
        "    file = fifo.open('rb', buffering=0)\n"
        "    print(len([file.read(1) for _ in range(3)]), flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(machine.address), str(machine.root / "its")]
    with subprocess.Popen(
        command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"3\n"
        with machine.build() as build:
            assert build.take() == 1
            child.kill()
            child.wait()
            assert build.take() == 4


def test_jobserver_shares_the_tokens_of_two_builds_evenly(machine: Machine) -> None:
    with machine.build() as first:
        assert first.take() == 4
        with machine.build() as second:
            assert second.take() == 1
            first.put()  # five jobs ran
            assert second.take() == 1
            first.put()
            assert second.take(1, PATIENT) == 2
            assert first.take() == 2
            second.put()
            assert second.take(1, PATIENT) == 2, "it may take its own again"
        assert first.take(2, PATIENT) == 4


def test_jobserver_moves_an_unused_offer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build with more tokens gets the one that the other does not take."""
    offered: list[_Build] = []
    offer = _Build.offer

    def counted(build: _Build) -> bool:
        offered.append(build)
        return offer(build)

    monkeypatch.setattr(_Build, "offer", counted)
    with machine.build() as first, machine.build() as second:
        assert first.take(2, PATIENT) == 3
        began = time.monotonic()
        assert second.take(0) == 1
        for _ in range(100):
            first.put()
            time.sleep(0.002)
            assert first.take(1, PATIENT) == 3
        idle = list(machine.server._builds.values())[1]
        seconds = time.monotonic() - began
        assert offered.count(idle) <= 3 + seconds, "the second is offered a token each time"
        first.put(2)
        assert second.take(2, PATIENT) == 3
    with machine.build() as first, machine.build() as second, machine.build() as third:
        assert first.take(0) == third.take(0) == 1
        assert second.take(1, PATIENT) == 2


@pytest.mark.parametrize("forged", [1, 3, 100, 5000])
def test_jobserver_discards_what_it_has_not_given(machine: Machine, forged: int) -> None:
    with machine.build() as bad, machine.build() as good:
        bad.take(1)
        os.set_blocking(bad._write, False)
        with contextlib.suppress(BlockingIOError):
            os.write(bad._write, b"x" * forged)
        time.sleep(0.1)  # at most the one that it had
        jobs = good.take()
        assert jobs in (2, 3)
        assert bad.take() + jobs <= 5
    with machine.build() as build:
        assert build.take() == 4


def test_jobserver_is_not_kept_busy_by_one_build(machine: Machine) -> None:
    with machine.build(most=1) as bad, machine.build() as good:
        with subprocess.Popen(["yes"], stdout=bad._write) as flood:
            try:
                steps, began = machine.steps, time.monotonic()
                for _ in range(20):
                    assert good.take(1, PATIENT) > 1
                    good.put()
                time.sleep(1)
                steps, seconds = machine.steps - steps, time.monotonic() - began
            finally:
                flood.kill()
        assert steps < 1000 * seconds
        assert good.take() == 3


def test_build_may_return_more_tokens_than_a_page_has_room_for(machine: Machine) -> None:
    with machine.build() as build:
        assert build.take(1) == 2
        for _ in range(5000):
            build.put()
            assert build.take(1, PATIENT) == 2, "the page is never empty"


def test_jobserver_rests_while_nothing_happens(machine: Machine) -> None:
    with machine.build() as first, machine.build(most=2):
        first.take(1)
        before = machine.used
        time.sleep(1)
        assert machine.used - before < 0.02


def test_build_without_a_jobserver(tmp_path: Path) -> None:
    with joined(None, tmp_path / "fifo", 4) as fifo:
        assert fifo is None
    with joined(tmp_path / "none", tmp_path / "fifo", 4) as fifo:
        assert fifo is None
    server = Jobserver(tmp_path / "server", 4)
    server.close()
    with joined(tmp_path / "server", tmp_path / "fifo", 4) as fifo:
        assert fifo is None
    assert not (tmp_path / "fifo").exists()


def test_jobserver_in_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    machine = Machine(deep)
    try:
        with machine.build() as build:
            assert build.take() == 4
    finally:
        machine.close()
