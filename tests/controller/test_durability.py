"""Everything that the broker has answered survives a crash."""

from __future__ import annotations

import contextlib

from farm_kit import Farm, Peer, report

from fabric.wire import sockets
from fabric.wire.messages import PROTOCOL, Answer, BuildOrder, Command, Poll, Query, Update


def order(n: int) -> BuildOrder:
    return BuildOrder(PROTOCOL, f"{n:032x}", "t", "refs/x", "c" * 40, "s.morph", detach=True)


def answer(peer: Peer, question: Command | Query) -> Answer:
    """The answer to a question, which is repeated; other messages are skipped."""
    for _ in range(6):
        peer.say(question)
        while peer.jobs.poll(10_000):
            with contextlib.suppress(sockets.DecodeError):
                message = peer.hear()
                if isinstance(message, Answer) and message.id == question.id:
                    assert not message.error
                    return message
    raise AssertionError("no answer")


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
        cancel = Command(PROTOCOL, "c", "cancel", f"{n:032x}")  # before it can be resolved
        assert answer(alice, cancel).lines == ("t: cancelled",)
        crash(farm)
        update = farm.peer(key).ask(Poll(f"{n:032x}", 0))
        assert isinstance(update, Update)
        assert update.state == "cancelled"


def test_crash_keeps_drained_workers_drained(farm: Farm) -> None:
    alice, w1 = farm.key("initiator", "alice"), farm.key("worker", "w1")
    farm.peer(w1).ask(report("w1"))
    for what, state in (("drain", "drained"), ("resume", "idle"), ("drain", "drained")):
        operator = farm.peer(alice)
        answer(operator, Command(PROTOCOL, "c", what, "w1"))  # type: ignore[arg-type]
        crash(farm)
        farm.peer(w1).ask(report("w1"))
        found = answer(farm.peer(alice), Query(PROTOCOL, "q", "workers"))
        assert [worker.state for worker in found.workers] == [state]
