"""The broker as a process, with real sockets, workers and initiators."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from waiting import until
from wire_kit import FakeWorker, key_of, resident

from fabric import bounds
from fabric.client.request import Action
from fabric.wire import sockets
from fabric.wire.messages import (
    Update,
)

if TYPE_CHECKING:
    from fabric_kit import Fabric

CHAIN = "app: lib zlib\nlib: zlib\nzlib:"


def test_broker_builds_from_end_to_end(fabric: Fabric) -> None:
    workers = [fabric.worker("w1"), fabric.worker("w2")]
    first = fabric.initiator(CHAIN)
    assert first.follow() == "done"
    assert first.states() == dict.fromkeys(("app", "lib", "zlib"), "done")
    assert first.logs == {n: f"building {n}\n".encode() for n in ("app", "lib", "zlib")}
    assert first.whole == dict.fromkeys(first.logs, True)
    first.leave()
    second = fabric.initiator(CHAIN)
    assert second.follow() == "done"
    assert second.states() == {"app": "cached"}
    assert sorted(workers[0].built + workers[1].built) == ["app", "lib", "zlib"]


def test_broker_reports_a_failure_with_its_log(fabric: Fabric) -> None:
    def build(name: str) -> bytes:
        raise FakeWorker.Fails(f"{name}: make returned 2")

    fabric.worker("w1", build)
    initiator = fabric.initiator(CHAIN)
    assert initiator.follow() == "failed"
    step = initiator.mirror.steps[key_of("zlib")]
    assert (step.state, step.message) == ("failed", "zlib: make returned 2")
    assert initiator.whole == {"zlib": True}


def test_broker_requests_lost_pieces_of_logs(fabric: Fabric) -> None:
    text = random.Random(1).randbytes(3_000_000)
    fabric.worker("w1", lambda _: text, lose_logs=True)
    initiator = fabric.initiator("zlib:")
    assert initiator.follow() == "done"
    assert initiator.logs["zlib"] == text
    assert initiator.whole == {"zlib": True}


def test_broker_serves_logs_without_the_stream(fabric: Fabric) -> None:
    text = random.Random(2).randbytes(1_000_000)
    fabric.worker("w1", lambda _: text)
    initiator = fabric.initiator("zlib:", stream=False)
    assert initiator.follow() == "done"
    assert initiator.logs["zlib"] == text


def test_broker_shares_builds_and_logs_between_requests(fabric: Fabric) -> None:
    first, second = fabric.initiator("zlib:"), fabric.initiator("app: zlib\nzlib:")
    first.turn_until(lambda: first.mirror.accepted)
    second.turn_until(lambda: second.mirror.accepted)
    worker = fabric.worker()
    second.follow()
    first.follow()
    assert worker.built == ["zlib", "app"]
    assert first.logs["zlib"] == second.logs["zlib"] == b"building zlib\n"


def test_broker_says_why_nothing_runs(fabric: Fabric) -> None:
    initiator = fabric.initiator("zlib:")
    initiator.turn_until(lambda: initiator.mirror.message == "zlib is ready: workers are starting")


def test_broker_adopts_running_attempts_after_a_kill(fabric: Fabric) -> None:
    go = fabric.directory / "go"

    def build(name: str) -> bytes:
        if name == "zlib":
            until(go.exists)
        return b"slowly\n"

    worker = fabric.worker("w1", build)
    initiator = fabric.initiator(CHAIN)
    initiator.turn_until(lambda: initiator.states().get("zlib") == "running")
    fabric.broker.kill()
    fabric.broker.start()
    go.touch()
    assert initiator.follow() == "done"
    assert worker.built == ["zlib", "lib", "app"]


def test_broker_ends_a_build_without_followers(fabric: Fabric) -> None:
    def build(_: str) -> bytes:
        raise InterruptedError

    worker = fabric.worker("w1", build)
    initiator = fabric.initiator(CHAIN)
    initiator.turn_until(lambda: initiator.states().get("zlib") == "running")
    until(lambda: bool(worker.agent.running))
    initiator.leave()
    until(lambda: not worker.agent.running)


def test_broker_records_builds_in_the_journal(fabric: Fabric) -> None:
    fabric.worker()
    assert fabric.initiator(CHAIN).follow() == "done"
    fabric.broker.end()
    with sqlite3.connect(fabric.broker.state / "journal.sqlite") as db:
        learned = db.execute("SELECT name FROM durations ORDER BY name").fetchall()
        attempts = db.execute("SELECT count(*), min(result) FROM attempts").fetchone()
        requests = db.execute("SELECT title, state FROM requests").fetchall()
    db.close()
    assert [row[0] for row in learned] == ["app", "lib", "zlib"]
    assert attempts == (3, "done")
    assert requests == [("a test", "done")]


def test_broker_gathers_updates(fabric: Fabric) -> None:
    layers = [f"s{n}: s{n + 1}" for n in range(150)]
    initiator = fabric.initiator("\n".join([*layers, "s150:"]))
    updates = 0
    turn = initiator.mirror.update

    def counted(update: Update, now: float) -> list[Action]:
        nonlocal updates
        updates += 1
        return turn(update, now)

    initiator.mirror.update = counted  # type: ignore[method-assign]
    fabric.worker()
    began = time.monotonic()
    assert initiator.follow() == "done"
    assert len(initiator.states()) == 151
    assert updates <= 25 * (time.monotonic() - began) + 5


def test_broker_memory_is_bounded_in_a_flood_of_logs(fabric: Fabric) -> None:
    piece = random.Random(9).randbytes(1_000_000)
    fabric.worker("w1", lambda _: 100 * piece)
    assert fabric.initiator("first:").follow(60.0) == "done"  # loads all code and fills the queues
    initiator = fabric.initiator("a: b\nb:")
    before = resident(fabric.broker.child.pid)
    assert initiator.follow(60.0) == "done"
    assert len(initiator.logs["a"]) == 100_000_000
    assert initiator.whole == {"a": True, "b": True}
    grown = resident(fabric.broker.child.pid) - before
    # the high-water marks of both directions, and the same as a reserve
    assert grown < 4 * sockets.LOGS_HWM * bounds.LOG_PIECE


# -- the process ---------------------------------------------------------------------------


def test_broker_ends_at_once_on_sigterm(fabric: Fabric) -> None:
    fabric.worker()
    assert fabric.initiator(CHAIN).follow() == "done"
    assert fabric.broker.end() < 2.0
    assert fabric.broker.said == ""


def test_broker_ends_with_its_parent(directory: Path) -> None:
    """A broker ends when its parent is killed."""
    program = (
        "import os, subprocess, sys, time\n"
        "options = '--directory {0} --state {0}/state --store {0}/store --parent {1}'\n"
        "options = options.format(sys.argv[1], os.getpid()).split()\n"
        "child = subprocess.Popen([sys.executable, '-m', 'fabric.broker', *options])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    broker = int(parent.stdout.readline())
    until((directory / "logs").exists)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            os.kill(broker, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{broker}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    until(gone)


def test_broker_refuses_a_directory_with_a_long_name(directory: Path) -> None:
    long = directory / ("x" * 100)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fabric.broker", "--directory", str(long), "--state", str(long)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the path of a socket may have 107 bytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_broker_reports_an_unwritable_state_directory(directory: Path) -> None:
    state = directory / "state"
    state.write_text("a file")
    done = subprocess.run(
        [sys.executable, "-m", "fabric.broker", f"--directory={directory}", f"--state={state}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_broker_fails_requests_without_a_usable_store(fabric: Fabric) -> None:
    fabric.broker.kill()
    fabric.broker.store = "nonsense://nowhere"
    fabric.broker.start()
    initiator = fabric.initiator("zlib:")
    assert initiator.follow(60.0) == "failed"
    assert "the artifact store does not answer" in initiator.mirror.steps[key_of("zlib")].message


def test_broker_ends_on_a_signal_while_idle(fabric: Fabric) -> None:
    until((fabric.directory / "logs").exists)
    time.sleep(0.3)
    fabric.broker.child.send_signal(signal.SIGINT)
    assert fabric.broker.child.wait(5.0) == 0
