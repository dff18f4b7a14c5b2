"""Everything that the broker has answered survives a crash."""

from __future__ import annotations

import pytest
from farm_kit import Farm, Peer, report

from fabric.wire.messages import PROTOCOL, Answer, BuildOrder, Command, Poll, Query, Update

pytestmark = pytest.mark.long


def order(n: int) -> BuildOrder:
    return BuildOrder(PROTOCOL, f"{n:032x}", "t", "refs/x", "c" * 40, "s.morph", detach=True)


def answer(peer: Peer, question: Command | Query) -> Answer:
    """The answer to a question; other messages are skipped."""
    found = peer.ask(question, lambda one: isinstance(one, Answer) and one.id == question.id)
    assert isinstance(found, Answer)
    assert not found.error
    return found


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
    cancelled = 0
    for n in range(50):
        alice = farm.peer(key)
        alice.say(order(n))
        found = answer(alice, Command(PROTOCOL, f"c{n}", "cancel", f"{n:032x}"))
        if found.lines == ("t: it is failed already",):
            continue  # a busy broker has dropped the command, and it came again too late
        assert found.lines == ("t: cancelled",)
        crash(farm)
        update = farm.peer(key).ask(Poll(f"{n:032x}", 0))
        assert isinstance(update, Update)
        assert update.state == "cancelled"
        cancelled += 1
        if cancelled == 5:
            return
    raise AssertionError("no request was cancelled in time")


def test_crash_keeps_drained_workers_drained(farm: Farm) -> None:
    alice, w1 = farm.key("initiator", "alice"), farm.key("worker", "w1")
    farm.peer(w1).ask(report("w1"))
    drain = Command(PROTOCOL, "c", "drain", "w1")
    resume = Command(PROTOCOL, "c", "resume", "w1")
    for command, state in ((drain, "drained"), (resume, "idle"), (drain, "drained")):
        answer(farm.peer(alice), command)
        crash(farm)
        farm.peer(w1).ask(report("w1"))
        found = answer(farm.peer(alice), Query(PROTOCOL, "q", "workers"))
        assert [worker.state for worker in found.workers] == [state]
