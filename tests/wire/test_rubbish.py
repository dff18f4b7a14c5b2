"""The broker's answers to invalid messages."""

from __future__ import annotations

import contextlib
import random
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
import zmq
from wire_kit import key_of, resident
from zmtp_kit import RawSocket

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    BuildGraph,
    LogPiece,
    LogRead,
    Poll,
    Published,
    Rejected,
    Report,
    ToInitiator,
)

if TYPE_CHECKING:
    from fabric_kit import Fabric

CHAIN = "app: lib zlib\nlib: zlib\nzlib:"


class Stranger:
    """A peer that sends any bytes to the broker."""

    def __init__(self, fabric: Fabric) -> None:
        self._context = zmq.Context()
        self.jobs = sockets.dealer(self._context)
        sockets.connect(self.jobs, sockets.ipc(fabric.directory, "jobs"))
        self.codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)

    def say(self, frame: bytes) -> None:
        assert self.jobs.poll(60_000, zmq.POLLOUT)
        self.jobs.send(frame)

    def hear(self) -> object:
        assert self.jobs.poll(60_000), "no answer"
        return self.codec.decode(self.jobs.recv())

    def rejected(self) -> Rejected:
        """The next `Rejected`; other messages are skipped."""
        while True:
            with contextlib.suppress(sockets.DecodeError):
                if isinstance(message := self.hear(), Rejected):
                    return message

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def stranger(fabric: Fabric) -> object:
    someone = Stranger(fabric)
    yield someone
    someone.close()


def test_broker_drops_invalid_messages_without_effect_on_others(
    fabric: Fabric, stranger: Stranger
) -> None:
    rng = random.Random(3)
    real = [
        msgspec.msgpack.encode(message)
        for message in (
            Report(PROTOCOL, "w", "another", 1, 1),
            Poll("r", 1),
            LogPiece("a" * 64, 1, 0, b"x"),
            LogRead("../../../etc/passwd", 1, 0, 100),
            LogRead("a" * 64, -1, -1, -1),
            LogPiece("../../../tmp/x", 1, -5, b"x"),
        )
    ]
    for _ in range(3000):
        frame = bytearray(rng.choice(real))
        for _ in range(rng.randint(0, 3)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        stranger.say(bytes(frame))
    stranger.say(rng.randbytes(1_000_000))
    stranger.say(b"\x91" * 100_000)  # an array in an array in an array ...
    fabric.worker()
    assert fabric.initiator(CHAIN).follow() == "done"
    assert fabric.broker.child.poll() is None
    assert len(re.findall("a message was dropped", fabric.broker.said)) == 1, "noted once"


def test_broker_drops_invalid_messages_made_by_hand(fabric: Fabric) -> None:
    fabric.worker()
    assert fabric.initiator("before:").follow() == "done"
    piece = Published("a" * 64, 1, 0, b"x").frame()
    for place, kind in (("jobs", b"DEALER"), ("logs-in", b"PUB")):
        stream = RawSocket(fabric.directory / place, kind)
        for frames in ((b"a", b"b"), (b"",), (piece, b"b", b"c"), (b"\xff" * 64 + piece[64:],)):
            for _ in range(50):
                stream.send(*frames)
        stream.send(piece, b"and", end=False)
        stream.close()
    assert fabric.initiator(CHAIN).follow() == "done"
    assert "it has 3 frames" in fabric.broker.said
    assert "it is not a piece of a log" in fabric.broker.said


def test_broker_rejects_another_protocol_and_says_which_side_to_upgrade(
    fabric: Fabric, stranger: Stranger
) -> None:
    stranger.say(msgspec.msgpack.encode(BuildGraph(PROTOCOL + 1, "r" * 32, "", (), ())))
    rejected = stranger.hear()
    assert isinstance(rejected, Rejected)
    assert (rejected.about, rejected.code) == ("r" * 32, "protocol")
    assert rejected.reason.endswith("upgrade the broker")
    older = {"t": "Report", "protocol": 0, "name": "w9", "in": ["another", "shape"]}
    stranger.say(msgspec.msgpack.encode(older))
    rejected = stranger.hear()
    assert isinstance(rejected, Rejected)
    assert rejected.about == "w9"
    assert rejected.reason.endswith("upgrade this peer")
    assert fabric.broker.child.poll() is None


def test_broker_rejects_a_message_out_of_bounds_with_the_reason(stranger: Stranger) -> None:
    stranger.say(msgspec.msgpack.encode(Report(PROTOCOL, "w1", "x86_64", -1, 1)))
    rejected = stranger.hear()
    assert isinstance(rejected, Rejected)
    assert (rejected.about, rejected.code) == ("w1", "bad-request")
    assert "slots" in rejected.reason


def test_broker_rejects_a_second_worker_of_one_name(stranger: Stranger) -> None:
    # in turns: a single report of a former run may just be late
    for sequence in range(1, 50):
        for instance in ("first", "second"):
            report = Report(PROTOCOL, "w1", "x86_64", 1, sequence, instance=instance)
            stranger.say(msgspec.msgpack.encode(report))
        with contextlib.suppress(sockets.DecodeError):  # a `Desired`, which is not for initiators
            if isinstance(answer := stranger.hear(), Rejected):
                assert "another worker is named w1 too" in answer.reason
                return
    pytest.fail("both are heard")


def test_broker_answers_for_a_log_that_does_not_exist(stranger: Stranger) -> None:
    stranger.say(msgspec.msgpack.encode(LogRead("b" * 64, 1, 0, 100)))
    assert stranger.hear() == Rejected("b" * 64, "no-log", "the store has no log of it")


def test_broker_reads_the_log_of_a_cached_step_from_the_store(
    fabric: Fabric, stranger: Stranger
) -> None:
    fabric.worker("w1", lambda _: b"0123456789")
    assert fabric.initiator("zlib:").follow() == "done"
    fabric.broker.end()
    fabric.broker.start()
    stranger.say(msgspec.msgpack.encode(LogRead(key_of("zlib"), 7, 2, 3)))
    piece = stranger.hear()
    assert isinstance(piece, LogPiece)
    assert (piece.data, piece.offset, piece.size) == (b"234", 2, 10)


def test_broker_rejects_an_unknown_request(stranger: Stranger) -> None:
    stranger.say(msgspec.msgpack.encode(Poll("nobody", 0)))
    rejected = stranger.hear()
    assert isinstance(rejected, Rejected)
    assert rejected.code == "unknown-request"


@pytest.mark.bound("FRAME")
def test_broker_closes_the_connection_of_a_message_that_is_too_large(
    fabric: Fabric, stranger: Stranger
) -> None:
    before = resident(fabric.broker.child.pid)
    for _ in range(3):
        stranger.say(b"\x91" * (bounds.FRAME + 1))
    fabric.worker()
    assert fabric.initiator(CHAIN).follow() == "done"
    assert resident(fabric.broker.child.pid) - before < bounds.FRAME
    stranger.say(msgspec.msgpack.encode(Poll("nobody", 0)))
    assert isinstance(stranger.hear(), Rejected), "it is connected anew"
