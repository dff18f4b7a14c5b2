"""Messages on the wire, and frames that are not messages."""

from __future__ import annotations

import random
from contextlib import nullcontext

import msgspec
import pytest
import zmq
from waiting import until

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    Assignment,
    Attempt,
    BuildGraph,
    Desired,
    FromPeer,
    Leave,
    LogPiece,
    LogRead,
    LogWanted,
    Message,
    Outcome,
    Poll,
    Rejected,
    Report,
    Running,
    StepSpec,
    StepState,
    ToInitiator,
    ToWorker,
    Update,
)

KEY = "a" * 64
JOB = msgspec.Raw(msgspec.msgpack.encode({"any": ["thing"]}))
FROM_PEER: list[Message] = [
    Report(
        PROTOCOL,
        "w1",
        "x86_64",
        2,
        7,
        features=("kvm",),
        running=(Running(KEY, 3, "build", 100),),
        finished=(Outcome(KEY, 2, "failed", "no", "build-commands", "make", 1.5, 10, KEY),),
        instance="i",
        epoch=3,
        answered=9,
    ),
    LogPiece(KEY, 1, 5, b"\0\xff", 7, KEY),
    BuildGraph(PROTOCOL, "r", "t", (StepSpec(KEY, "zlib", "chunk", "x86_64", JOB),), (KEY,), True),
    Poll("r", 3),
    Leave("r"),
    LogRead(KEY, 1, 0, 10),
]
TO_WORKER: list[Message] = [
    Desired(1, 3, (Assignment(KEY, 1, JOB, 7),), (Attempt(KEY, 2),), (Attempt(KEY, 3),)),
    LogWanted(KEY, 1, 0, 10),
    Rejected(KEY, "no-log", "gone"),
]
TO_INITIATOR: list[Message] = [
    Update("r", 3, "building", (StepState(KEY, "running", fence=1, worker="w"),), 2.5, "why"),
    LogPiece(KEY, 1, 5, b"x"),
    Rejected("r", "protocol", "upgrade"),
]


@pytest.mark.parametrize(
    ("messages", "kinds"),
    [(FROM_PEER, FromPeer), (TO_WORKER, ToWorker), (TO_INITIATOR, ToInitiator)],
)
def test_message_is_encoded_and_decoded(messages: list[Message], kinds: object) -> None:
    codec: sockets.Codec[Message] = sockets.Codec(kinds)
    for message in messages:
        back = codec.decode(codec.encode(message))
        assert type(back) is type(message)
        assert codec.encode(back) == codec.encode(message)


def test_message_carries_a_job_undecoded() -> None:
    codec: sockets.Codec[BuildGraph] = sockets.Codec(BuildGraph)
    graph = FROM_PEER[2]
    back = codec.decode(codec.encode(graph))
    assert bytes(back.steps[0].job) == bytes(JOB)


def test_message_may_have_unknown_fields() -> None:
    codec: sockets.Codec[Poll] = sockets.Codec(Poll)
    grown = msgspec.msgpack.encode({"t": "Poll", "request": "r", "seen": 1, "new": [1]})
    assert codec.decode(grown) == Poll("r", 1)


def test_message_or_decode_error() -> None:
    rng = random.Random(5)
    codec: sockets.Codec[Message] = sockets.Codec(FromPeer)
    frames = [codec.encode(message) for message in FROM_PEER]
    decode_error = 0
    for n in range(20_000):
        frame = bytearray(rng.choice(frames) if n % 4 else rng.randbytes(rng.randint(0, 60)))
        for _ in range(rng.randint(1, 4)):
            if frame:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            codec.decode(bytes(frame))
        except sockets.DecodeError:
            decode_error += 1
    assert decode_error > 5_000


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x80"],
)
def test_message_traps(frame: bytes) -> None:
    codec: sockets.Codec[Message] = sockets.Codec(FromPeer)
    with pytest.raises(sockets.DecodeError):
        codec.decode(frame)


@pytest.mark.parametrize(
    "message",
    [
        Poll("r" * 1000, 1),
        Poll("r", -1),
        LogRead("../../etc/passwd", 1, 0, 10),
        LogRead(KEY + "\n", 1, 0, 10),
        LogRead(KEY, -1, 0, 10),
        LogPiece(KEY, 1, -5, b"x"),
        LogPiece(KEY, 2**63, 0, b"x"),
        Report(PROTOCOL, "w", "x86_64", -1, 1),
        Report(PROTOCOL, "w", "x86_64", 10**9, 1),
        Report(PROTOCOL, "w", "x86_64", 1, 1, running=(Running("../x", 1),)),
        Report(PROTOCOL, "w", "x86_64", 1, 1, finished=(Outcome("", 1, "done"),)),
    ],
)
def test_message_out_of_bounds_is_a_decode_error(message: Message) -> None:
    codec: sockets.Codec[Message] = sockets.Codec(FromPeer)
    with pytest.raises(sockets.DecodeError):
        codec.decode(codec.encode(message))


def test_greeting_of_other_versions() -> None:
    newer = {"t": "Greeting", "protocol": PROTOCOL + 1, "name": "w1", "what": None}
    assert sockets.greeting(msgspec.msgpack.encode(newer)) == ("w1", PROTOCOL + 1)
    same = {"protocol": PROTOCOL, "request": "r"}
    assert sockets.greeting(msgspec.msgpack.encode(same)) == ("r", PROTOCOL)
    assert sockets.greeting(b"nonsense") is None


def test_mismatch_says_which_side_to_upgrade() -> None:
    sides = {"us": "the broker", "them": "this peer"}
    assert sockets.mismatch(PROTOCOL + 1, **sides).endswith("upgrade the broker")
    assert sockets.mismatch(PROTOCOL - 1, **sides).endswith("upgrade this peer")


def test_socket_address_errors_say_what_to_do() -> None:
    with pytest.raises(sockets.AddressError, match="set TMPDIR"):
        sockets.ipc("/tmp/" + "x" * 100, "jobs")
    assert sockets.ipc("/tmp", "jobs") == "ipc:///tmp/jobs"
    context = zmq.Context()
    router, dealer = sockets.router(context), sockets.dealer(context)
    try:
        with pytest.raises(sockets.AddressError, match="cannot listen on ipc:///nowhere"):
            sockets.bind(router, "ipc:///nowhere/at/all")
        with pytest.raises(sockets.AddressError, match="cannot connect to junk"):
            sockets.connect(dealer, "junk")
    finally:
        context.destroy(linger=0)


def test_socket_send_to_no_peer_is_not_an_error() -> None:
    context = zmq.Context()
    try:
        socket = sockets.router(context)
        sockets.bind(socket, "inproc://here")
        assert not sockets.send(socket, b"hello", to=b"nobody")
    finally:
        context.destroy(linger=0)


@pytest.mark.bound("BROKER_TEXT")
def test_message_with_a_text_that_is_too_long_is_not_decoded() -> None:
    codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)
    for length in (bounds.BROKER_TEXT, bounds.BROKER_TEXT + 1):
        frame = codec.encode(Update("r", 1, "failed", message="x" * length))
        with pytest.raises(sockets.DecodeError) if length > bounds.BROKER_TEXT else nullcontext():
            codec.decode(frame)


@pytest.mark.bound("LOG_RANGE")
def test_message_with_a_log_range_that_is_too_long_is_not_decoded() -> None:
    codec: sockets.Codec[FromPeer] = sockets.Codec(FromPeer)
    piece = LogPiece(KEY, 1, 0, bytes(bounds.LOG_RANGE + 1))
    with pytest.raises(sockets.DecodeError, match="data"):
        codec.decode(codec.encode(piece))


@pytest.mark.bound("LOG_PIECE")
def test_socket_drops_a_published_piece_that_is_too_long() -> None:
    context = zmq.Context()
    try:
        hearer, teller = sockets.subscriber(context, ""), sockets.publisher(context)
        hearer.bind("tcp://127.0.0.1:*")
        sockets.connect(teller, hearer.getsockopt_string(zmq.LAST_ENDPOINT))
        until(lambda: sockets.send(teller, b"x" * sockets.MAX_LOG_FRAME) and hearer.poll(10))
        assert len(hearer.recv()) == sockets.MAX_LOG_FRAME
        sockets.send(teller, b"x" * (sockets.MAX_LOG_FRAME + 1))
        until(lambda: sockets.send(teller, b"y") and hearer.poll(10))
        sizes = {len(hearer.recv())}
        while hearer.poll(10):
            sizes.add(len(hearer.recv()))
        assert sizes <= {1, sockets.MAX_LOG_FRAME}
    finally:
        context.destroy(linger=0)
