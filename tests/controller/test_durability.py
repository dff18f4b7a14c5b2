"""Everything that the broker has answered survives a crash."""

from __future__ import annotations

import contextlib

from farm_kit import Farm, Peer, report

from fabric.wire import sockets
from fabric.wire.messages import PROTOCOL, Answer, BuildOrder, Command, Poll, Query, Update


def order(n: int) -> BuildOrder:
    return BuildOrder(PROTOCOL, f"{n:032x}", "t", "refs/x", "c" * 40, "s.morph", detach=True)


def answer(peer: Peer, id: str) -> Answer:
    """The answer to a question; other messages are skipped."""
    while True:
        with contextlib.suppress(sockets.DecodeError):
            if isinstance(message := peer.hear(), Answer) and message.id == id:
                assert not message.error
                return message


def crash(farm: Farm) -> None:
    farm.kill()
    farm.start()


def test_crash_keeps_accepted_requests(farm: Farm) -> None:
    key = farm.key("initiator", "alice")
    for n in range(5):
        accepted = farm.peer(key).ask(order(n))
        crash(farm)
        assert isinstance(accepted, Update)
        assert isinstance(farm.peer(key).ask(Poll(f"{n:032x}", 0)), Update), "it is not known"


def test_crash_keeps_cancelled_requests_cancelled(farm: Farm) -> None:
    key = farm.key("initiator", "alice")
    for n in range(5):
        alice = farm.peer(key)
        alice.say(order(n))
        alice.say(Command(PROTOCOL, "c", "cancel", f"{n:032x}"))  # before it can be resolved
        assert answer(alice, "c").lines == ("t: cancelled",)
        crash(farm)
        update = farm.peer(key).ask(Poll(f"{n:032x}", 0))
        assert isinstance(update, Update)
        assert update.state == "cancelled"


def test_crash_keeps_drained_workers_drained(farm: Farm) -> None:
    alice, w1 = farm.key("initiator", "alice"), farm.key("worker", "w1")
    farm.peer(w1).ask(report("w1"))
    for what, state in (("drain", "drained"), ("resume", "idle"), ("drain", "drained")):
        operator = farm.peer(alice)
        operator.say(Command(PROTOCOL, "c", what, "w1"))  # type: ignore[arg-type]
        answer(operator, "c")
        crash(farm)
        farm.peer(w1).ask(report("w1"))
        asking = farm.peer(alice)
        asking.say(Query(PROTOCOL, "q", "workers"))
        assert [worker.state for worker in answer(asking, "q").workers] == [state]
