"""Messages of peers that a broker rejects without an effect on other peers."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec
import pytest
import zmq
from farm_kit import Farm, report
from waiting import until
from wire_kit import resident

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.keys import Role
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildOrder,
    Outcome,
    Query,
    Rejected,
    Report,
    Running,
)
from fabric.wire.sockets import Curve

KEY = "a" * 64


def order(**more: Any) -> BuildOrder:
    more = {"title": "t", "ref": "refs/builds/m/r", "system": "systems/s.morph"} | more
    return BuildOrder(PROTOCOL, "r" * 32, commit="c" * 40, **more)


def outcome(**more: Any) -> Report:
    return report("m", finished=(Outcome(KEY, 1, "failed", **more),))


def several(number: int) -> tuple[str, ...]:
    return tuple(f"{n:064x}" for n in range(number))


WORKER, INITIATOR = "worker", "initiator"


def case(name: str, *bounds: str) -> Callable[..., Any]:
    """A row of a table, marked as the test of these bounds."""
    return partial(pytest.param, id=name, marks=list(map(pytest.mark.bound, bounds)))


#: The sender's role, its message, the reason in the answer.
REFUSED = [
    case("slots", "SLOTS")(
        WORKER,
        Report(PROTOCOL, "m", "x86_64", bounds.SLOTS + 1, 1),
        "Expected `int` <= 1024 - at `$.slots`",
    ),
    case("features", "FEATURES")(
        WORKER,
        report("m", features=several(65)),
        "Expected `array` of length <= 64 - at `$.features`",
    ),
    case("running", "REPORTED")(
        WORKER,
        report("m", running=tuple(Running(key, 1) for key in several(2049))),
        "Expected `array` of length <= 2048 - at `$.running`",
    ),
    case("finished", "OUTCOMES")(
        WORKER,
        report("m", finished=tuple(Outcome(key, 1, "done") for key in several(129))),
        "Expected `array` of length <= 128 - at `$.finished`",
    ),
    case("outcome's message", "OUTCOME_TEXT")(
        WORKER,
        outcome(message="x" * 2001),
        "Expected `str` of length <= 2000 - at `$.finished[0].message`",
    ),
    case("outcome's command")(
        WORKER,
        outcome(command="x" * 3_500_000),
        "Expected `str` of length <= 2000 - at `$.finished[0].command`",
    ),
    case("damaged", "DAMAGED")(
        WORKER,
        outcome(damaged=several(65)),
        "Expected `array` of length <= 64 - at `$.finished[0].damaged`",
    ),
    case("outcome's digest")(
        WORKER,
        outcome(log_sha256="zz"),
        "Expected `str` matching regex '\\\\A([0-9a-f]{64})?\\\\Z' - at `$.finished[0].log_sha256`",
    ),
    case("not a number")(
        WORKER,
        outcome(seconds=float("nan")),
        "Expected `float` >= -1000000000000.0 - at `$.finished[0].seconds`",
    ),
    case("why it refuses")(
        WORKER,
        report("m", refusing="x" * 4097),
        "Expected `str` of length <= 4096 - at `$.refusing`",
    ),
    case("a worker orders")(
        WORKER, order(), "m-worker is admitted as worker, who may not send a BuildOrder"
    ),
    case("title", "TEXT")(
        INITIATOR, order(title="x" * 4097), "Expected `str` of length <= 4096 - at `$.title`"
    ),
    case("components", "COMPONENTS")(
        INITIATOR,
        order(components=("x",) * 1001),
        "Expected `array` of length <= 1000 - at `$.components`",
    ),
    case("order", "BUILD_ORDER")(
        INITIATOR,
        order(components=("x" * 4000,) * 980),
        "BuildOrder of 3,923,117 bytes: it may have 65,536",
    ),
    case("how another id begins")(
        INITIATOR,
        msgspec.structs.replace(order(), request="0123456789ab"),
        "the id of a request has 32 hexadecimal digits",
    ),
    case("question's subject")(
        INITIATOR,
        Query(PROTOCOL, "q", "why", "x" * 4097),
        "Expected `str` of length <= 4096 - at `$.about`",
    ),
    case("question", "INITIATOR_MESSAGE")(
        INITIATOR,
        {"t": "Query", "protocol": PROTOCOL, "id": "q", "what": "workers", "more": "x" * 40_000},
        "Query of 40,045 bytes: it may have 32,768",
    ),
    case("an initiator reports")(
        INITIATOR, report("m"), "m-initiator is admitted as initiator, who may not send a Report"
    ),
]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with ExitStack() as stack:
        yield Farm(tmp_path_factory.mktemp("farm"), stack)


@pytest.fixture(scope="module")
def honest(farm: Farm) -> Any:
    return farm.peer(farm.key("initiator", "honest"))


@pytest.fixture(scope="module")
def curves(farm: Farm) -> dict[Role, Any]:
    roles: tuple[Role, ...] = ("worker", "initiator")
    return {role: farm.key(role, f"m-{role}") for role in roles}


@pytest.fixture(scope="module")
def readers(farm: Farm) -> Iterator[tuple[str, Curve]]:
    """Names that no error has named yet; all are admitted before the first is used."""
    return iter([(name, farm.key("initiator", name)) for name in ("r1", "r2", "r3")])


def is_served(honest: Any, farm: Farm) -> None:
    """The broker answers another peer."""
    answer = honest.ask(Query(PROTOCOL, uuid.uuid4().hex, "workers"))
    assert isinstance(answer, Answer), answer
    assert farm.child.poll() is None, farm.said


@pytest.mark.parametrize(("role", "message", "reason"), REFUSED)
def test_message_that_is_hostile_is_rejected(
    farm: Farm, honest: Any, curves: dict[Role, Any], role: Role, message: Any, reason: str
) -> None:
    sender = farm.peer(curves[role])
    refused = sender.ask(message)
    assert isinstance(refused, Rejected)
    assert refused.reason.removeprefix("a message cannot be read: ") == reason
    sender.close()
    is_served(honest, farm)


def wait_for(events: Any, wanted: int) -> None:
    while True:
        assert events.poll(60_000), "it does not happen"
        event, _ = events.recv_multipart()
        if int.from_bytes(event[:2], sys.byteorder) == wanted:
            return


def topics_of(number: int) -> list[bytes]:
    return [b"%064x" % n for n in range(number)]


@pytest.mark.parametrize(
    ("topics", "reason"),
    [
        case("topic", "TOPIC")(
            [b"x" * 65], "it subscribes to a topic of 65 bytes, and it may have 64"
        ),
        case("long topic")([b"x" * 2_000], ""),
        case("topics", "TOPICS")(
            topics_of(bounds.TOPICS + 300),
            "it has 20,224 subscriptions, and there may be 20,000",
        ),
    ],
)
def test_subscriptions_past_a_bound_end_their_connection(
    farm: Farm,
    honest: Any,
    readers: Iterator[tuple[str, Curve]],
    topics: list[bytes],
    reason: str,
) -> None:
    is_served(honest, farm)
    name, curve = next(readers)
    context = zmq.Context()
    try:
        reader = sockets.subscriber(context, curve=curve)
        events = reader.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        sockets.connect(reader, farm.at.logs)
        wait_for(events, zmq.EVENT_HANDSHAKE_SUCCEEDED)
        for topic in topics:
            reader.setsockopt(zmq.SUBSCRIBE, topic)
        wait_for(events, zmq.EVENT_DISCONNECTED)
    finally:
        reader.disable_monitor()
        context.destroy(linger=0)
    is_served(honest, farm)
    said = f"a message of initiator {name} was dropped: {reason}"
    if reason:
        until(lambda: said in farm.said)
    grown = resident(farm.child.pid)
    assert grown < 200 * bounds.MIB
