"""What is needed is built, in order, and nothing else is even asked for."""

from itertools import pairwise

import pytest
from machine_kit import key_of, specs_of
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


def test_need_builds_a_chain_from_the_bottom() -> None:
    stage = building(CHAIN, "w1")
    for name in ("zlib", "lib", "app", "stratum", "system"):
        assert stage.running() == {"w1": [name]}
        stage.done(name)
    assert stage.verdict() == "done"
    assert set(stage.states().values()) == {"done"}


def test_need_stops_at_cached_artifacts() -> None:
    stage = Stage(stored=["app"])
    stage.worker("w1")
    stage.submit(CHAIN)
    stage.sync()
    assert stage.asked == [["system"], ["stratum"], ["app"]]
    assert stage.states() == {"system": "waiting", "stratum": "running", "app": "cached"}
    stage.done("stratum", "system")
    assert stage.verdict() == "done"


def test_need_of_a_cached_goal_is_nothing() -> None:
    stage = Stage(stored=["system"])
    stage.submit(CHAIN)
    assert stage.asked == [["system"]]
    assert stage.verdict() == "done"
    assert stage.states() == {"system": "cached"}


def test_need_of_no_goals_is_done_at_once() -> None:
    stage = Stage()
    stage.handle(BuildGraph(PROTOCOL, "r1", "nothing", specs_of(CHAIN), ()))
    assert stage.verdict() == "done"


def test_need_leaves_other_steps_alone() -> None:
    stage = Stage()
    stage.worker("w1", slots=8)
    stage.submit("app: zlib\nother:\nzlib:", "app")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    assert "other" not in stage.states()


def test_ready_tasks_all_run_at_once() -> None:
    stage = Stage()
    stage.worker("w1", "w2", slots=2)
    stage.submit("all: a b c d\na:\nb:\nc:\nd:")
    stage.sync()
    assert stage.all_running() == ["a", "b", "c", "d"]
    assert [len(jobs) for jobs in stage.running().values()] == [2, 2]


def test_task_waits_for_each_dependency() -> None:
    stage = Stage()
    stage.worker("w1", slots=4)
    stage.submit("app: a b a\na:\nb:")  # named twice is needed once
    stage.sync()
    stage.done("a")
    assert stage.states()["app"] == "waiting"
    stage.done("b")
    assert stage.running() == {"w1": ["app"]}


def test_task_is_done_once_the_store_has_it() -> None:
    stage = building("app: zlib\nzlib:", "w1")
    stage.store_answers = False
    stage.ends("zlib", "done")
    step = stage.steps()["zlib"]
    assert (step.state, step.phase) == ("running", "verify")
    assert stage.states()["app"] == "waiting"
    stage.answer()
    stage.sync()
    assert stage.states() == {"app": "running", "zlib": "done"}


def test_need_of_two_goals_that_share_a_dependency() -> None:
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


def test_graph_with_a_circle_is_invalid() -> None:
    stage = Stage()
    stage.submit("a: b top\nb: c\nc: a leaf\ntop:\nleaf:")
    reason = refused(stage)
    assert reason.startswith("steps depend on each other in a circle: ")
    assert sorted(reason.partition("circle: ")[2].split(" -> ")[:-1]) == ["a", "b", "c"]


def test_graph_with_a_step_that_needs_itself_is_invalid() -> None:
    stage = Stage()
    stage.submit("a: a")
    assert "a -> a" in refused(stage)


def test_graph_with_unknown_dependencies_or_goals_is_invalid() -> None:
    stage = Stage()
    stage.submit("a: b")
    assert "a: it depends on" in refused(stage)
    stage = Stage()
    stage.submit("a:", "z")
    assert "is not one of the request's steps" in refused(stage)


def test_graph_with_a_key_twice_is_invalid() -> None:
    spec = specs_of("a:")[0]
    stage = Stage()
    stage.handle(BuildGraph(PROTOCOL, "r1", "", (spec, spec), (spec.key,)))
    assert "its key is also that of" in refused(stage)


def test_graph_with_other_dependencies_for_a_key_is_invalid() -> None:
    stage = Stage()
    stage.submit("a: b\nb:")
    stage.submit("a: c\nc:", request="r2")
    assert stage.verdict("r2") == "failed"
    assert "other things" in stage.update("r2").message
    assert key_of("b") in stage.scheduler.state.tasks


def test_graph_that_is_large_is_validated_in_portions(
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
