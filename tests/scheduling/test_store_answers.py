"""Artifacts that were there, and turn out to be damaged."""

import pytest
from machine_kit import key_of
from scheduling_kit import Stage

from fabric.scheduling.events import Result
from fabric.scheduling.states import State

APP = "app: zlib other\nzlib: base\nbase:\nother:"


def spoilt(*workers: str) -> Stage:
    """`app` runs and needs `zlib`, which is cached and spoilt; `base` is gone from the store."""
    stage = Stage(stored=["zlib", "other"])
    stage.worker(*workers)
    stage.submit(APP)
    stage.sync()
    assert stage.all_running() == ["app"]
    stage.spoilt = {key_of("zlib")}
    return stage


def test_store_is_told_which_attempt_has_built_what() -> None:
    stage = Stage()
    stage.store_answers = False
    stage.worker("w1", "w2")
    stage.submit("app: one two\none:\ntwo:")
    stage.answer()
    stage.sync()
    assert stage.all_running() == ["one", "two"]
    stage.store_answers = False
    stage.ends("one", "done", manifest="1" * 64, tell=False)
    stage.ends("two", "done", built=False, tell=False)
    stage.sync()
    results = [result for ask in stage._questions for result in ask.results]  # type: ignore[union-attr]
    [task] = [task for task in stage.scheduler.state.tasks.values() if task.spec.name == "one"]
    assert results == [Result(key_of("one"), task.fence, task.builder, "1" * 64)]
    assert task.builder in ("w1", "w2")
    stage.answer()
    stage.sync()
    stage.done("app")
    assert stage.verdict() == "done"


def test_damaged_artifact_is_built_again_with_all_it_needs() -> None:
    stage = spoilt("w1")
    stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
    assert stage.inspected == [["zlib"]]
    stage.sync()
    assert stage.states() == {
        "app": "waiting",
        "zlib": "waiting",
        "other": "cached",
        "base": "running",
    }
    stage.done("base", "zlib", "app")
    assert stage.verdict() == "done"
    assert stage.scheduler.state.workers["w1"].faults == 0


def test_inspection_is_over_when_its_request_is_cancelled() -> None:
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
    assert stage.states()["zlib"] == "waiting"
    stage.leave()
    assert stage.states() == {"app": "cancelled", "zlib": "cancelled", "other": "cached"}


def test_damaged_artifact_is_no_fault_of_the_worker() -> None:
    stage = spoilt("w1")
    for n in range(2):
        stage.spoilt = {key_of("zlib")}
        stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
        stage.sync()
        if n == 0:
            stage.done("base")
        stage.done("zlib")
    task = stage.scheduler.state.tasks[key_of("app")]
    assert (task.faults, task.fault_count) == ({}, 0)


def test_damaged_artifact_fails_after_some_times() -> None:
    stage = spoilt("w1")
    for n in range(stage.limits.damages):
        assert stage.verdict() == "building"
        stage.spoilt = {key_of("zlib")}
        stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
        stage.sync()
        if n == 0:
            stage.done("base")
        if n < stage.limits.damages - 1:
            stage.done("zlib")
    assert stage.verdict() == "failed"
    assert stage.steps()["zlib"].message == "the artifact store spoilt it 3 times"


def test_complaint_about_a_whole_artifact_is_a_fault_of_the_worker() -> None:
    stage = Stage(stored=["zlib", "other"])
    stage.worker("liar")
    stage.submit(APP)
    stage.sync()
    stage.worker("w2")
    stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
    assert stage.scheduler.state.workers["liar"].faults == 1
    stage.sync()
    assert stage.running() == {"w2": ["app"]}
    assert stage.states()["zlib"] == "cached"


def test_complaint_of_the_only_worker_fails_the_task_in_the_end() -> None:
    stage = Stage(stored=["zlib", "other"])
    stage.worker("liar")
    stage.submit(APP)
    for _ in range(stage.limits.faults):
        stage.wait(10.0, alive=["liar"], polls=["r1"])
        stage.sync()
        assert stage.running() == {"liar": ["app"]}
        stage.ends("app", "fault", message="zlib: digest differs", damaged=["zlib"])
    assert stage.verdict() == "failed"
    assert stage.steps()["app"].message == "no machine could do it: liar: zlib: digest differs"
    assert len(stage.inspected) == stage.limits.faults


def test_complaint_about_no_dependency_is_an_ordinary_fault() -> None:
    stage = spoilt("w1")
    stage.ends("app", "fault", message="?", damaged=["app", "base", "elsewhere"])
    assert stage.inspected == []
    assert stage.scheduler.state.tasks[key_of("app")].fault_count == 1


def test_inspection_blocks_tasks_that_would_begin() -> None:
    stage = Stage(stored=["zlib"])
    stage.worker("w1", "w2")
    stage.submit("top: a b c\na: zlib\nb: zlib\nc: zlib\nzlib:")
    stage.sync()
    assert stage.all_running() == ["a", "b"]
    assert stage.states()["c"] == "ready"
    stage.store_answers = False
    stage.ends("a", "fault", message="zlib is damaged", damaged=["zlib"])
    stage.sync()
    assert stage.all_running() == ["b"], "c does not begin with what may be damaged"
    assert "which the store is asked for" in stage.why("c")
    assert stage.why("zlib") == (
        "zlib is asking: w1 found it damaged; the artifact store inspects it, for 0.0 s"
    )
    stage.spoilt = {key_of("zlib")}
    stage.answer()
    stage.sync()
    assert stage.all_running() == ["b", "zlib"]
    stage.done("b", "zlib")
    assert stage.all_running() == ["a", "c"]


def test_inspection_is_one_at_a_time() -> None:
    stage = Stage(stored=["x", "y"])
    stage.worker("w1", "w2", "w3")
    stage.submit("top: a b c\na: x\nb: y\nc: x\nx:\ny:")
    stage.sync()
    stage.store_answers = False
    stage.ends("a", "fault", damaged=["x"])
    stage.ends("b", "fault", damaged=["y"])
    stage.ends("c", "fault", damaged=["x"])
    assert stage.inspected == [["x"]]
    stage.answer()
    assert stage.inspected == [["x"], ["y"]]
    assert stage.scheduler.state.tasks[key_of("c")].fault_count == 0, "x was looked at already"


def test_complaint_about_an_earlier_artifact_is_ignored() -> None:
    stage = Stage(stored=["zlib"])
    stage.worker("w1", "w2", "w3")
    stage.submit("top: a b\na: zlib\nb: zlib\nzlib:")
    stage.sync()
    stage.spoilt = {key_of("zlib")}
    stage.ends("a", "fault", damaged=["zlib"])
    stage.wait(1.0, alive=["w1", "w2", "w3"], polls=["r1"])
    stage.sync()
    stage.done("zlib")
    stage.ends("b", "fault", damaged=["zlib"])
    assert len(stage.inspected) == 1
    assert stage.scheduler.state.tasks[key_of("b")].fault_count == 0
    stage.sync()
    stage.done("a", "b", "top")
    assert stage.verdict() == "done"


def test_inspection_of_a_goal_keeps_its_request_open() -> None:
    stage = Stage(stored=["zlib"])
    stage.worker("w1")
    stage.submit("app: zlib\nzlib:", "app", "zlib")
    stage.sync()
    stage.spoilt = {key_of("zlib")}
    stage.ends("app", "fault", damaged=["zlib"])
    stage.sync()
    stage.done("zlib", "app")
    assert stage.verdict() == "done"


def test_damaged_artifact_that_is_unwanted_is_not_built() -> None:
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", damaged=["zlib"])
    stage.leave()
    stage.submit("zlib: base\nbase:", request="r2")
    stage.answer()
    stage.sync()
    assert stage.states("r2") in ({"zlib": "waiting", "base": "running"}, {"zlib": "cached"})


def test_inspection_is_shown() -> None:
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", damaged=["zlib"])
    assert stage.scheduler.state.tasks[key_of("zlib")].state is State.ASKING
    assert stage.verdict() == "building"
    assert "the artifact store inspects it" in stage.update().message


def test_inspection_that_fails_proves_nothing() -> None:
    """Found by the simulator: good workers were charged because the store was away."""
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", damaged=["zlib"])
    stage.refuse_to_answer()
    assert stage.scheduler.state.workers["w1"].faults == 0
    stage.wait(1.0, alive=["w1"], polls=["r1"])
    assert stage.inspected == [["zlib"], ["zlib"]]
    stage.answer()
    stage.sync()
    stage.done("base", "zlib", "app")
    assert stage.verdict() == "done"


def test_inspection_that_always_fails_ends_the_request() -> None:
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", damaged=["zlib"])
    for _ in range(stage.limits.asks):
        stage.refuse_to_answer()
        stage.wait(9.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "failed"
    assert stage.steps()["zlib"].message == ("the artifact store does not answer: no route to host")


def test_inspection_is_explained_to_a_later_request() -> None:
    stage = spoilt("w1")
    stage.store_answers = False
    stage.ends("app", "fault", message="zlib is damaged", damaged=["zlib"])
    stage.leave()
    stage.submit("zlib:", request="r2")
    assert stage.why("zlib").startswith("zlib is asking: a worker found it damaged")


@pytest.mark.parametrize(
    ("goals", "verdict", "message"),
    [(("y", "low"), "done", ""), (("y", "x"), "failed", "x needs low, which failed")],
)
def test_task_built_for_another_request_since_is_no_failure(
    goals: tuple[str, ...], verdict: str, message: str
) -> None:
    """`low` fails, is built for another request, and is needed again since `w` is damaged."""
    stage = Stage(stored=["w"])
    stage.worker("w1", "w2")
    stage.submit("y: w\nw: low\nx: low\nlow:", *goals, keep_going=True, detach=True)
    stage.sync()
    stage.ends("low", "failed")
    stage.submit("low:", request="r2", detach=True)
    stage.spoilt = {key_of("w")}
    stage.ends("y", "fault", message="w: digest differs", damaged=["w"])
    stage.sync()
    stage.done("low", "w", "y")
    assert (stage.verdict(), stage.update().message) == (verdict, message)
