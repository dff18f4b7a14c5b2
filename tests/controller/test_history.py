"""Attempts that have ended, as the broker remembers them."""

from __future__ import annotations

import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric import bounds
from fabric.controller.history import AttemptHistory
from fabric.scheduling.events import Effect, Ended, Event
from fabric.wire.messages import PROTOCOL, Answer, AttemptInfo, Outcome, Query

APP = "app: zlib\nzlib:"


class Remembering(Stage):
    """A core whose ended attempts are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = AttemptHistory(7)

    def _handle(self, event: Event) -> list[Effect]:
        effects = super()._handle(event)
        for each in effects:
            if isinstance(each, Ended):
                self.memory.add(each, self.now)
        return effects

    def look(self, about: str = "", seen: int = 0) -> list[AttemptInfo]:
        query = Query(PROTOCOL, "q", "attempts", about, seen)
        answer = self.scheduler.answer(query, self.now)
        answer = self.memory.complete(answer, query, self.scheduler.state, self.now)
        return list(answer.attempts)


def ended(fence: int, *, worker: str = "w1", since: float = 100.0, message: str = "") -> Ended:
    outcome = Outcome("a" * 64, fence, "fault", message=message)
    return Ended("a" * 64, fence, worker, "chunk", "zlib", "x86_64", since, outcome)


def test_history_tells_how_attempts_ended() -> None:
    stage = Remembering()
    stage.worker("w1")
    stage.submit(APP, request="abcd1")
    stage.sync()
    [id] = stage.machines["w1"].running
    stage.now += 2.0
    stage.machines["w1"].running[id] = "build"
    stage.report("w1")
    stage.now += 3.0
    stage.ends("zlib", "fault", message="disk error")
    [failed] = stage.look()
    assert (failed.key, failed.fence, failed.name, failed.kind) == (*id, "zlib", "chunk")
    assert (failed.worker, failed.result, failed.message) == ("w1", "fault", "disk error")
    assert (failed.ago, failed.seconds, failed.phases) == (5.0, 5.0, (("build", 2.0),))
    stage.wait(5.0, alive=["w1"], polls=["abcd1"])
    stage.sync()
    first, again = stage.look()
    assert (first.number, first.ago, first.seconds) == (failed.number, 10.0, 5.0)
    assert (again.number, again.result, again.name) == (0, "", "zlib")
    assert stage.look("abcd1") == stage.look("abcd") == stage.look("w1") == [first, again]
    assert stage.look(key_of("zlib")) == [first, again]
    assert stage.look("w2") == stage.look(key_of("app")) == []
    assert stage.look(seen=first.number) == [again]


def test_history_of_a_request_has_the_attempts_of_its_time() -> None:
    """A step has one key in every request that has it."""
    stage = Remembering()
    stage.worker("w1")
    stage.submit(APP, request="first")
    stage.sync()
    stage.now += 1.0
    stage.ends("zlib", "failed", message="Error 1")
    stage.now += 1.0
    stage.submit(APP, request="second")
    stage.sync()
    stage.now += 1.0
    stage.done("zlib")
    results = {request: [a.result for a in stage.look(request)] for request in ("first", "second")}
    assert results == {"first": ["failed"], "second": ["done", ""]}
    stage.leave("second")
    stage.sync()
    assert [each.result for each in stage.look("second")] == ["done", "lost"]
    assert [each.name for each in stage.look("second")] == ["zlib", "app"]


def test_history_has_lost_attempts_with_their_names() -> None:
    stage = Remembering()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.restart("w1")
    lost, running = stage.look()
    assert (lost.name, lost.result) == ("zlib", "lost")
    assert running.result == ""


@pytest.mark.bound("ATTEMPTS_KEPT")
@pytest.mark.bound("ATTEMPTS_SHOWN")
def test_history_is_bounded_and_read_in_pages() -> None:
    stage = building(APP, "w0")
    history = AttemptHistory(1)
    more = 25
    for n in range(bounds.ATTEMPTS_KEPT + more):
        history.add(ended(n, worker=f"w{n % 2}"), 100.0 + n)

    def pages(about: str) -> list[list[AttemptInfo]]:
        seen, found = 0, []
        while True:
            query = Query(PROTOCOL, "q", "attempts", about, seen)
            answer = stage.scheduler.answer(query, stage.now)
            answer = history.complete(answer, query, stage.scheduler.state, stage.now)
            found.append(list(answer.attempts))
            past = [each.number for each in answer.attempts if each.number]
            if not past or len(past) < bounds.ATTEMPTS_SHOWN:
                return found
            seen = past[-1]

    every = [[each for each in page if each.number] for page in pages("")]
    assert [len(page) for page in every] == [*[bounds.ATTEMPTS_SHOWN] * 20, 0]
    assert [[each.name for each in page if not each.number] for page in pages("")] == [
        *[[]] * 19, ["zlib"], ["zlib"],
    ], "those that run come after the last that ended"  # fmt: skip
    fences = [each.fence for page in every for each in page]
    assert fences == list(range(more, bounds.ATTEMPTS_KEPT + more))
    odd = [each for page in pages("w1") for each in page]
    assert [each.fence for each in odd] == fences[::2]


@pytest.mark.bound("ATTEMPT_TEXT")
def test_history_cuts_long_messages() -> None:
    attempt = AttemptHistory(1).add(ended(1, message="x" * bounds.OUTCOME_TEXT), 101.0)
    assert len(attempt.message) == bounds.ATTEMPT_TEXT
    assert attempt.message.endswith("... (cut: it has 2,000 characters)")


def test_history_numbers_grow_over_restarts() -> None:
    first = AttemptHistory(1)
    old = [first.add(ended(n), 100.0) for n in range(3)]
    second = AttemptHistory(2, old[:2])  # the last was not written in time
    new = second.add(ended(7), 101.0)
    assert new.number > old[2].number
    stage = Stage()
    query = Query(PROTOCOL, "q", "attempts", "", old[2].number)
    answer = second.complete(Answer("q"), query, stage.scheduler.state, 200.0)
    assert [each.fence for each in answer.attempts] == [7]
