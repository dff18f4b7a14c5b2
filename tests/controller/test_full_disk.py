"""A full disk of the controller: it accepts nothing that it cannot record."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from farm_kit import HOST, Farm, Peer, report
from small_disk import SmallDisk
from waiting import until
from wire_kit import FakeWorker, Follower

from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildOrder,
    Command,
    Poll,
    Query,
    Rejected,
    Update,
)
from fabric.wire.sockets import Curve

#: Enough for a journal, and for the room that it needs to write again.
SIZE = 4 << 20


@pytest.fixture
def disk(farm: Farm) -> Iterator[SmallDisk]:
    """A small disk with the state of the farm's broker."""
    farm.kill()
    metrics = f'metrics = "{HOST}:7419"'
    farm.config.write_text(farm.config.read_text().replace('metrics = ""', metrics))
    disk = SmallDisk(farm.directory / "state", SIZE)
    farm.inside = disk.inside
    farm.start()
    yield disk
    farm.kill()
    disk.close()


@pytest.fixture
def silence(farm: Farm, disk: SmallDisk) -> Iterator[None]:  # noqa: ARG001  it starts the farm, too
    """A trove that does not answer, so that no order is resolved."""
    with socket.create_server((HOST, 0)) as trove:
        farm.kill()
        text = farm.config.read_text()
        farm.config.write_text(f'{text}trove = "git://{HOST}:{trove.getsockname()[1]}/it"\n')
        farm.start()
        yield


@pytest.fixture
def alice(farm: Farm) -> Curve:
    return farm.key("initiator", "alice")


def order(n: int) -> BuildOrder:
    return BuildOrder(PROTOCOL, f"{n:032x}", "t", "refs/x", "c" * 40, "s.morph", detach=True)


def about(message: object) -> str:
    match message:
        case Update():
            return message.request
        case Answer():
            return message.id
        case Rejected():
            return message.about
    return ""


def told(peer: Peer, message: BuildOrder | Poll | Command | Query) -> Update | Answer | Rejected:
    """The answer to a message, which is repeated as by an initiator."""
    wanted = message.request if isinstance(message, BuildOrder | Poll) else message.id
    for _ in range(60):  # a broker that restarts on a busy machine takes its time
        peer.say(message)
        while peer.jobs.poll(1000):
            heard = peer.hear()
            if about(heard) == wanted:
                assert isinstance(heard, Update | Answer | Rejected)
                return heard
    raise AssertionError("no answer")


def warning(peer: Peer) -> str:
    """The broker's warning in its answers."""
    answer = told(peer, Query(PROTOCOL, "q", "requests"))
    assert isinstance(answer, Answer)
    return answer.warning


def numbers() -> bytes:
    with urllib.request.urlopen(f"http://{HOST}:7419/metrics") as page:
        return bytes(page.read())


def full(peer: Peer, disk: SmallDisk) -> tuple[list[BuildOrder], str]:
    """Fill the disk and order until an order is rejected: (accepted orders, reason)."""
    accepted = [order(0)]
    assert isinstance(told(peer, order(0)), Update)
    disk.fill()
    while isinstance(answer := told(peer, order(len(accepted))), Update):
        accepted.append(order(len(accepted)))
    assert isinstance(answer, Rejected)
    assert answer.code == "not-now"
    return accepted, answer.reason


def written(farm: Farm, disk: SmallDisk, question: str) -> list[str]:
    """Rows of the journal."""
    code = (
        "import sqlite3, sys\n"
        "for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]): print(*row)"
    )
    command = [sys.executable, "-c", code, f"{farm.directory}/state/journal.sqlite", question]
    done = subprocess.run(disk.inside(command), capture_output=True, text=True, check=True)
    return done.stdout.split()


def crash(farm: Farm) -> None:
    farm.kill()
    farm.start()


def test_full_disk_keeps_accepted_requests_and_rejects_others(
    farm: Farm, disk: SmallDisk, alice: Curve
) -> None:
    farm.peer(farm.key("worker", "w1")).ask(report("w1"))
    peer = farm.peer(alice)
    accepted, reason = full(peer, disk)
    said = re.escape(
        "the controller accepts no builds, cancels or drains, because it cannot write its journal:"
        f" {farm.directory}/state/journal.sqlite: "
    )
    # The first error is from SQLite, a later one from the system.
    said += "(database or disk is full|No space left on device); make room on that disk"
    assert re.fullmatch(said, reason)
    for command in (
        Command(PROTOCOL, "c1", "cancel", order(0).request),
        Command(PROTOCOL, "c2", "drain", "w1"),
    ):
        rejected = told(peer, command)
        assert isinstance(rejected, Rejected)
        assert (rejected.about, rejected.code) == (command.id, "not-now")
        assert re.fullmatch(said, rejected.reason)
    assert re.fullmatch(said, warning(peer))
    until(lambda: b"\nfabric_journal_writable 0.0" in numbers())
    answer = told(peer, Query(PROTOCOL, "q2", "requests"))
    assert isinstance(answer, Answer)
    known = {one.request for one in answer.requests}
    assert known == {one.request for one in accepted}, "what was refused is forgotten"
    assert isinstance(told(peer, order(0)), Update), "it is known, and need not be promised"
    farm.kill()
    disk.free()
    farm.start()
    again = farm.peer(alice)
    for one in accepted:
        update = told(again, Poll(one.request, 0))
        assert isinstance(update, Update), "it was accepted"
        assert update.state != "cancelled"
    rejected = told(again, Poll(order(len(accepted)).request, 0))
    assert isinstance(rejected, Rejected)
    assert rejected.code == "unknown-request"
    answer = told(again, Query(PROTOCOL, "q3", "workers"))
    assert isinstance(answer, Answer)
    assert {worker.state for worker in answer.workers} <= {"idle"}


def test_full_disk_accepts_requests_when_there_is_room(
    farm: Farm, disk: SmallDisk, alice: Curve
) -> None:
    peer = farm.peer(alice)
    accepted, _ = full(peer, disk)
    disk.free()
    late = order(len(accepted))
    until(lambda: isinstance(told(peer, late), Update))
    assert warning(peer) == ""
    crash(farm)
    again = farm.peer(alice)
    for one in (*accepted, late):
        assert isinstance(told(again, Poll(one.request, 0)), Update)
    assert farm.said.count("the journal cannot be written: ") == 1
    assert farm.said.count("the journal is written again") == 1


@pytest.mark.usefixtures("silence")
def test_full_disk_cancel_is_not_durable(farm: Farm, disk: SmallDisk, alice: Curve) -> None:
    peer, cancel = farm.peer(alice), Command(PROTOCOL, "c", "cancel", order(0).request)
    assert isinstance(told(peer, order(0)), Update)
    disk.fill()
    rejected = told(peer, cancel)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("t: cancelled, but it is not in the journal yet")
    assert rejected.reason.endswith("; make room on that disk")
    for _ in range(5):  # nor do followers get an update
        peer.say(Poll(order(0).request, 0))
        peer.say(Query(PROTOCOL, "q", "requests"))
        while not isinstance(heard := peer.hear(), Answer):
            assert not (isinstance(heard, Update) and heard.state == "cancelled")
    farm.kill()
    disk.free()
    farm.start()
    again = farm.peer(alice)
    update = told(again, Poll(order(0).request, 0))
    assert isinstance(update, Update)
    assert update.state != "cancelled"
    assert isinstance(told(again, cancel), Answer)
    crash(farm)
    update = told(farm.peer(alice), Poll(order(0).request, 0))
    assert isinstance(update, Update)
    assert update.state == "cancelled"


def test_full_disk_drain_is_durable_when_there_is_room(
    farm: Farm, disk: SmallDisk, alice: Curve
) -> None:
    farm.peer(farm.key("worker", "w1")).ask(report("w1"))
    peer, drain = farm.peer(alice), Command(PROTOCOL, "c", "drain", "w1")
    disk.fill()
    rejected = told(peer, drain)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("w1 gets nothing new, but it is not in the journal yet")
    disk.free()
    until(lambda: told(peer, drain) == Answer("c", lines=("w1 gets nothing new",)))
    farm.kill()
    assert written(farm, disk, "SELECT worker FROM drained") == ["w1"]


# -- running builds ------------------------------------------------------------------------


class Gate:
    """A folder in which builds wait."""

    def __init__(self, farm: Farm) -> None:
        text = farm.config.read_text()
        farm.kill()
        farm.config.write_text(text.replace(f'keys = "{farm.keys}"', "plain = true"))
        farm.start()
        self._farm = farm
        self._open = threading.Event()
        self._worker = FakeWorker(farm.directory, "w1", self._build, at=farm.at)
        self._followers: list[Follower] = []

    def _build(self, name: str) -> bytes:
        assert self._open.wait(60.0)
        return f"building {name}\n".encode()

    def follow(self, text: str, request: str = "") -> Follower:
        follower = Follower(self._farm.directory, text, "b", at=self._farm.at, request=request)
        self._followers.append(follower)
        return follower

    def begun(self) -> Follower:
        """An initiator whose build waits for the test."""
        follower = self.follow("a:\nb: a")
        follower.turn_until(lambda: "running" in follower.states().values())
        return follower

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.set()
        for follower in self._followers:
            follower.close()
        self._worker.stop()


@pytest.fixture
def gate(farm: Farm, disk: SmallDisk) -> Iterator[Gate]:
    assert disk
    gate = Gate(farm)
    yield gate
    gate.close()


def test_full_disk_build_goes_on_and_is_recorded_later(
    farm: Farm, disk: SmallDisk, gate: Gate
) -> None:
    follower = gate.begun()
    disk.fill()
    gate.open()
    assert follower.follow() == "done"
    assert follower.whole == {"a": True, "b": True}

    disk.free()
    until(lambda: written(farm, disk, "SELECT state FROM requests") == ["done"])
    assert written(farm, disk, "SELECT name FROM attempts") == ["a", "b"]


def test_full_disk_build_whose_end_is_lost_ends_once_more(
    farm: Farm, disk: SmallDisk, gate: Gate
) -> None:
    follower = gate.begun()
    disk.fill()
    gate.open()
    assert follower.follow() == "done"
    farm.kill()
    disk.free()
    farm.start()
    again = gate.follow("a:\nb: a", request=follower.mirror.request)
    assert again.follow() == "done"
    assert set(again.states().values()) == {"cached"}
