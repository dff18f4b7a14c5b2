"""What is needed is built, in order, and nothing else is even asked for."""

from itertools import pairwise

import pytest
from machine_kit import key_of, offers_of
from scheduling_kit import Stage, building

from fabric.scheduling.discards import PAUSE
from fabric.scheduling.events import Tick
from fabric.wire.messages import PROTOCOL, BuildGraph

CHAIN = """
    system: stratum
    stratum: app
    app: lib
    lib: zlib
    zlib:
"""


def test_a_chain_is_built_from_the_bottom() -> None:
    stage = building(CHAIN, "w1")
    for name in ("zlib", "lib", "app", "stratum", "system"):
        assert stage.running() == {"w1": [name]}
        stage.done(name)
    assert stage.verdict() == "done"
    assert set(stage.states().values()) == {"done"}


def test_what_is_cached_is_not_built_and_below_it_nothing_is_asked_for() -> None:
    stage = Stage(stored=["app"])
    stage.worker("w1")
    stage.submit(CHAIN)
    stage.sync()
    assert stage.asked == [["system"], ["stratum"], ["app"]]
    assert stage.states() == {"system": "waiting", "stratum": "running", "app": "cached"}
    stage.done("stratum", "system")
    assert stage.verdict() == "done"


def test_a_cached_goal_needs_nothing() -> None:
    stage = Stage(stored=["system"])
    stage.submit(CHAIN)
    assert stage.asked == [["system"]]
    assert stage.verdict() == "done"
    assert stage.states() == {"system": "cached"}


def test_no_goals_are_done_at_once() -> None:
    stage = Stage()
    stage.handle(BuildGraph(PROTOCOL, "r1", "nothing", offers_of(CHAIN), ()))
    assert stage.verdict() == "done"


def test_steps_that_no_goal_needs_are_left_alone() -> None:
    stage = Stage()
    stage.worker("w1", slots=8)
    stage.submit("app: zlib\nother:\nzlib:", "app")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    assert "other" not in stage.states()


def test_all_that_is_ready_runs_at_once() -> None:
    stage = Stage()
    stage.worker("w1", "w2", slots=2)
    stage.submit("all: a b c d\na:\nb:\nc:\nd:")
    stage.sync()
    assert stage.all_running() == ["a", "b", "c", "d"]
    assert [len(jobs) for jobs in stage.running().values()] == [2, 2]


def test_a_step_waits_for_each_of_its_dependencies() -> None:
    stage = Stage()
    stage.worker("w1", slots=4)
    stage.submit("app: a b a\na:\nb:")  # named twice is needed once
    stage.sync()
    stage.done("a")
    assert stage.states()["app"] == "waiting"
    stage.done("b")
    assert stage.running() == {"w1": ["app"]}


def test_done_counts_once_the_store_has_it() -> None:
    stage = building("app: zlib\nzlib:", "w1")
    stage.store_answers = False
    stage.ends("zlib", "done")
    step = stage.steps()["zlib"]
    assert (step.state, step.phase) == ("running", "verify")
    assert stage.states()["app"] == "waiting"
    stage.answer()
    stage.sync()
    assert stage.states() == {"app": "running", "zlib": "done"}


def test_two_goals_sharing_a_dependency() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit("a: zlib\nb: zlib\nzlib:", "a", "b")
    stage.sync()
    stage.done("zlib", "a")
    assert stage.verdict() == "building"
    stage.done("b")
    assert stage.verdict() == "done"


def refused(stage: Stage) -> str:
    assert stage.verdict() == "failed"
    assert not stage.scheduler.state.tasks
    return stage.update().message


def test_a_circle_is_refused_and_shown() -> None:
    stage = Stage()
    stage.submit("a: b top\nb: c\nc: a leaf\ntop:\nleaf:")
    reason = refused(stage)
    assert reason.startswith("steps depend on each other in a circle: ")
    assert sorted(reason.partition("circle: ")[2].split(" -> ")[:-1]) == ["a", "b", "c"]


def test_a_step_that_needs_itself_is_refused() -> None:
    stage = Stage()
    stage.submit("a: a")
    assert "a -> a" in refused(stage)


def test_unknown_dependencies_and_goals_are_refused() -> None:
    stage = Stage()
    stage.submit("a: b")
    assert "a: it depends on" in refused(stage)
    stage = Stage()
    stage.submit("a:", "z")
    assert "is not one of the request's steps" in refused(stage)


def test_a_key_that_is_not_its_own_is_refused() -> None:
    offer = offers_of("a:")[0]
    stage = Stage()
    stage.handle(BuildGraph(PROTOCOL, "r1", "", (offer, offer), (offer.key,)))
    assert "its key is also that of" in refused(stage)


def test_a_key_has_one_meaning() -> None:
    stage = Stage()
    stage.submit("a: b\nb:")
    stage.submit("a: c\nc:", request="r2")
    assert stage.verdict("r2") == "failed"
    assert "other things" in stage.update("r2").message
    assert key_of("b") in stage.scheduler.state.tasks


def test_a_large_request_is_taken_in_bit_by_bit_and_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fabric.scheduling.plan.PORTION", 2)
    monkeypatch.setattr("fabric.scheduling.outbox.MANY_KEYS", 2)
    monkeypatch.setattr("fabric.scheduling.discards.MANY", 2)
    stage = Stage()
    stage.worker("w1")
    chain = "\n".join([*(f"s{n}: s{n + 1}" for n in range(9)), "s9:"])
    for request in ("r1", "r2"):
        stage.submit(chain, request=request)
        assert stage.verdict(request) == "resolving"
    stage.submit("a:", request="r3")
    stage.sync()
    assert stage.running() == {"w1": ["a"]}
    assert stage.command("cancel", "r2").error == ""
    ticks = 0
    while stage.scheduler.next_due() <= stage.now:
        stage.handle(Tick())
        ticks += 1
    assert ticks > 10
    assert stage.verdict() == "building"
    stage.done("a")
    assert stage.running() == {"w1": ["s9"]}
    stage.done(*(f"s{n}" for n in range(9, -1, -1)))
    assert stage.verdict() == "done"
    assert all(len(keys) <= 2 for keys in stage.asked)
    discarded = stage.scheduler.state.discarded
    pieces = [sum(map(len, discarded))]
    while discarded:
        assert stage.now < stage.scheduler.next_due() <= stage.now + PAUSE, "others come first"
        stage.now = stage.scheduler.next_due()
        stage.handle(Tick())
        pieces.append(sum(map(len, discarded)))
    assert len(pieces) > 10
    assert all(before - after <= 2 for before, after in pairwise(pieces))
