"""A step with equal contents in the store spares the build of another."""

from __future__ import annotations

from machine_kit import key_of
from msgspec.structs import replace
from scheduling_kit import Stage, building

CHAIN = """
app: lib
lib: low
low:
"""


def edited(*equal: str, known: bool = True) -> Stage:
    """``low`` has been edited, and was built; ``equal`` steps have the contents of before."""
    stage = Stage()
    stage.equal.update(equal)
    if known:
        stage.familiar.add("low")
    stage.worker("w1")
    stage.submit(CHAIN)
    stage.sync()
    stage.done("low")
    return stage


def comparing(*equal: str) -> Stage:
    """The store has ``low``, and has not answered yet whether a step is equal to ``lib``."""
    stage = Stage(stored=["low"], epoch=2)
    stage.equal.update(equal)
    stage.compares = False
    stage.submit("lib: low\nlow:")
    assert stage.compared == [["lib"]]
    assert stage.states() == {"low": "cached", "lib": "waiting"}
    return stage


def answered(stage: Stage) -> Stage:
    stage.compares = True
    stage.answer()
    return stage


def test_edit_without_effect_ends_where_it_was_made() -> None:
    stage = edited("lib", "app")
    assert stage.compared == [["lib"], ["app"]]
    assert stage.states() == {"low": "done", "lib": "cached", "app": "cached"}
    assert stage.verdict() == "done"


def test_step_with_other_contents_is_built() -> None:
    stage = edited("app")
    assert stage.compared == [["lib"]]
    assert stage.all_running() == ["lib"]
    stage.familiar.add("lib")  # it gives what it gave before
    stage.done("lib")
    assert stage.compared == [["lib"], ["app"]]
    assert stage.verdict() == "done"


def test_unknown_output_is_compared_with_nothing() -> None:
    """Otherwise each step of a first build would cost one more query."""
    stage = edited("lib", "app", known=False)
    assert stage.all_running() == ["lib"]
    stage.done("lib")
    assert stage.compared == []


def test_step_above_cached_ones_is_compared() -> None:
    stage = Stage(stored=["low", "lib"])
    stage.equal.add("app")
    stage.submit(CHAIN)
    assert stage.compared == [["app"]]
    assert stage.verdict() == "done"


def test_steps_without_dependencies_and_strata_are_not_compared() -> None:
    stage = Stage(stored=["low"])
    stage.worker("w1", slots=2)
    graph = stage.submit_of("list: low\nalone:\nlow:", "list", "alone")
    listed, *rest = graph.steps
    stage.handle(replace(graph, steps=(replace(listed, kind="stratum"), *rest)))
    stage.sync()
    assert stage.compared == []
    assert stage.all_running() == ["alone", "list"]


def test_comparison_is_explained() -> None:
    assert "looks for a step with equal contents" in comparing().why("lib")


def test_comparison_that_fails_costs_a_build() -> None:
    stage = comparing("lib")
    stage.worker("w1")
    stage.refuse_to_answer()
    stage.sync()
    assert stage.all_running() == ["lib"]


def test_step_is_compared_once() -> None:
    """A fault of a machine changes nothing of its contents."""
    stage = edited()
    stage.sync()
    stage.ends("lib", "fault")
    stage.wait(3.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.all_running() == ["lib"]
    assert stage.compared == [["lib"]]


def test_step_is_compared_again_if_a_dependency_was_damaged() -> None:
    """Another build of it may have another output."""
    stage = edited()
    stage.sync()
    stage.spoilt.add(key_of("low"))
    stage.ends("lib", "fault", damaged=["low"])
    stage.sync()
    assert stage.all_running() == ["low"]
    stage.equal.add("lib")
    stage.done("low")
    assert stage.compared[:2] == [["lib"], ["lib"]]
    assert stage.states()["lib"] == "cached"


def test_attempt_that_runs_already_is_taken_up_if_nothing_is_equal() -> None:
    stage = comparing()
    stage.machines = building("lib:", "w1").machines
    stage.sync()
    assert stage.states()["lib"] == "waiting"
    answered(stage)
    assert stage.states()["lib"] == "running"
    assert len(stage.began) == 1
    stage.done("lib")
    assert stage.verdict() == "done"


def test_attempt_that_runs_already_is_killed_if_a_step_is_equal() -> None:
    stage = comparing("lib")
    stage.machines = building("lib:", "w1").machines
    stage.sync()
    assert answered(stage).verdict() == "done"
    stage.sync()
    assert not stage.machines["w1"].running


def test_outcome_that_comes_meanwhile_counts() -> None:
    stage = comparing()
    old = building("lib:", "w1")
    old.ends("lib", "done", tell=False)
    stage.machines = old.machines
    stage.stored |= old.stored
    stage.sync()
    assert stage.verdict() == "done"
    assert answered(stage).verdict() == "done"


def test_request_that_ends_meanwhile_forgets_the_comparison() -> None:
    stage = comparing("lib")
    stage.leave()
    answered(stage)
    assert not stage.scheduler.state.tasks
