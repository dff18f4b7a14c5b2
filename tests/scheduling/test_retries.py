"""Builds that fail, machines that are unable, workers that are lost."""

import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric.scheduling import events
from fabric.scheduling.model import Limits

FORK = "top: left right\nleft: base\nright: base\nbase:"


def fails(text: str, *workers: str, fail_fast: bool = False) -> Stage:
    """Workers that are at what a text describes, of which `a` fails."""
    stage = Stage()
    stage.worker(*workers)
    stage.submit(text, fail_fast=fail_fast)
    stage.sync()
    stage.ends("a", "failed", message="make: error 2")
    stage.sync()
    return stage


def test_failed_build_finishes_what_runs_and_begins_nothing() -> None:
    stage = fails("top: a b c d\na:\nb:\nc:\nd: a", "w1", "w2")
    assert stage.verdict() == "building"
    assert stage.running() == {"w2": ["b"]}
    assert stage.states() == {
        "top": "cancelled", "a": "failed", "b": "running", "c": "cancelled", "d": "cancelled"
    }  # fmt: skip
    stage.done("b")
    assert stage.verdict() == "failed"
    assert stage.update().message == "a"
    assert stage.states()["b"] == "done"
    assert stage.running() == {}
    assert not stage.scheduler.state.tasks


def test_failed_build_counts_the_failures_of_what_still_runs() -> None:
    stage = fails("top: a b c\na:\nb:\nc:", "w1", "w2", "w3")
    stage.ends("b", "failed")
    assert stage.verdict() == "building"
    stage.done("c")
    assert stage.verdict() == "failed"
    assert stage.update().message == "a and 1 more"


def test_failed_build_tries_again_what_ran_on_a_machine_that_was_unable() -> None:
    stage = fails("top: a b c\na:\nb:\nc:", "w1", "w2")
    stage.ends("b", "fault", message="disk full")
    stage.sync()
    assert stage.running() == {"w1": ["b"]}
    stage.done("b")
    assert stage.verdict() == "failed"
    assert stage.states()["c"] == "cancelled"


def test_failed_build_gives_up_what_would_need_more_to_be_built() -> None:
    stage = Stage(stored=["base"])
    stage.worker("w1", "w2")
    stage.submit("top: a b\na:\nb: base\nbase: below\nbelow:")
    stage.sync()
    stage.ends("a", "failed")
    stage.spoilt = {key_of("base")}
    stage.ends("b", "fault", damaged=["base"])
    stage.sync()
    assert stage.running() == {}
    assert stage.verdict() == "failed"
    assert stage.steps()["b"].message == "needs below, which is missing"


def test_failed_build_ends_when_what_it_finishes_is_damaged_again_and_again() -> None:
    stage = Stage(stored=["base"])
    stage.worker("w1", "w2")
    stage.submit("top: a b\na:\nb: base\nbase:")
    stage.sync()
    stage.ends("a", "failed")
    for _ in range(stage.limits.damages - 1):
        stage.spoilt = {key_of("base")}
        stage.ends("b", "fault", damaged=["base"])
        stage.sync()
        stage.done("base")
    assert stage.all_running() == ["b"]
    stage.spoilt = {key_of("base")}
    stage.ends("b", "fault", damaged=["base"])
    assert stage.verdict() == "failed"
    assert stage.steps()["b"].message == "needs base, which is missing"


def test_failed_build_with_fail_fast_ends_its_request_and_drops_the_rest() -> None:
    stage = fails("top: a b\na:\nb:", "w1", "w2", fail_fast=True)
    assert stage.verdict() == "failed"
    assert stage.update().message == "a"
    assert stage.states() == {"top": "cancelled", "a": "failed", "b": "cancelled"}
    assert not stage.steps()["a"].fault
    step = stage.steps()["a"]
    assert (step.message, step.failed_command, step.worker) == ("make: error 2", "make", "w1")
    assert stage.running() == {}
    assert not stage.scheduler.state.tasks


def test_failed_build_is_not_tried_again_for_its_request() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit(FORK, keep_going=True)
    stage.sync()
    stage.ends("base", "failed", message="no")
    stage.sync()
    assert stage.verdict() == "failed"
    assert len(stage.ended) == 1


def test_keep_going_builds_the_rest() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit("top: a b\na: a1\na1:\nb: b1\nb1: b2\nb2:", keep_going=True)
    stage.sync()
    stage.done("b2", "a1")
    stage.ends("b1", "failed")
    assert stage.verdict() == "building"
    assert stage.states()["b"] == "cancelled"
    assert stage.states()["top"] == "cancelled"
    assert stage.steps()["top"].message == "needs b1, which failed"
    stage.done("a")
    assert stage.verdict() == "failed"
    assert stage.states()["a"] == "done"


def test_keep_going_with_a_failure_below_an_unknown_step() -> None:
    """The store tells late that `b` is absent, when what it needs has failed already."""
    stage = Stage()
    stage.worker("w1")
    stage.submit("top: a b\na: x\nb: mid\nmid: x\nx:", "top", "a", keep_going=True)
    stage.sync()
    stage.ends("x", "failed")
    assert stage.verdict() == "failed"
    assert stage.states() == {
        "top": "cancelled", "a": "cancelled", "b": "cancelled", "mid": "cancelled", "x": "failed"
    }  # fmt: skip


def test_keep_going_with_a_failure_known_before_the_need() -> None:
    """Two requests: the first fails at `a` while the store is slow to tell about `b`."""
    stage = Stage()
    stage.worker("w1")
    text = "top: b x\nb: a\na:\nx:"
    stage.submit("other: a\na:", request="r2", keep_going=True)
    stage.sync()
    stage.store_answers = False
    stage.submit(text, "top", "a", keep_going=True)
    assert stage.running() == {"w1": ["a"]}
    stage.ends("a", "failed")
    assert stage.verdict("r2") == "failed"
    stage.answer()
    stage.sync()
    assert stage.states() == {
        "top": "cancelled", "a": "failed", "b": "cancelled", "x": "running"
    }  # fmt: skip
    stage.done("x")
    assert stage.verdict() == "failed"


def test_failed_build_is_tried_again_for_a_new_request() -> None:
    stage = building("a:", "w1")
    stage.ends("a", "failed")
    assert stage.verdict() == "failed"
    stage.submit("a:", request="r2")
    stage.sync()
    stage.done("a")
    assert stage.verdict("r2") == "done"
    assert stage.verdict("r1") == "failed"


def test_failed_build_is_tried_again_while_the_old_request_goes_on() -> None:
    stage = Stage()
    stage.worker("w1")
    text = "top: a b\na: c\nc: b\nb:\nother:"
    stage.submit(text, "top", "other", keep_going=True)
    stage.sync()
    stage.ends("b", "failed")
    assert stage.running() == {"w1": ["other"]}
    stage.submit(text, "a", request="r2")
    stage.done("other")
    assert stage.verdict("r1") == "failed"
    for name in ("b", "c", "a"):
        stage.done(name)
    assert stage.verdict("r2") == "done"


def test_fault_is_retried_on_another_worker() -> None:
    stage = building("top: a b\na:\nb:", "sick", "well")
    assert stage.running() == {"sick": ["a"], "well": ["b"]}
    stage.ends("a", "fault", message="disk full")
    assert stage.running() == {"well": ["b"]}, "the sick one is not asked again"
    stage.wait(5.0, alive=["sick", "well"], polls=["r1"])
    assert stage.running() == {"well": ["b"]}
    stage.done("b")
    assert stage.running() == {"well": ["a"]}
    stage.done("a", "top")
    assert stage.verdict() == "done"


def test_fault_is_retried_on_the_same_worker_if_no_other_is_left() -> None:
    stage = building("top: a b\na:\nb:", "w1", "w2")
    stage.ends("a", "fault", message="disk full")
    stage.wait(5.0, alive=["w1", "w2"], polls=["r1"])
    assert stage.running() == {"w2": ["b"]}
    stage.machines["w2"].draining = True
    stage.sync("w2", "w1")
    assert stage.running() == {"w1": ["a"], "w2": ["b"]}


def test_fault_of_one_worker_does_not_fail_the_task() -> None:
    stage = Stage()
    stage.worker("sick", "well")
    names = [f"s{n}" for n in range(8)]
    stage.submit("top: " + " ".join(names) + "\n" + "\n".join(f"{n}:" for n in names))
    for _ in range(200):
        stage.sync()
        for worker, steps in stage.running().items():
            for step in steps:
                stage.ends(step, "fault" if worker == "sick" else "done", message="bad memory")
        if stage.verdict() != "building":
            break
        stage.wait(1.0, alive=["sick", "well"], polls=["r1"])
    assert stage.verdict() == "done"
    sick = [each for each in stage.ended if each.worker == "sick"]
    assert len(sick) == len({each.key for each in sick}), "a step came back to the sick worker"


def test_fault_of_the_only_worker_fails_the_task_after_backoff() -> None:
    stage = building("a:", "w1")
    for rest in (1.0, 2.0):
        stage.ends("a", "fault", message="disk full")
        assert stage.running() == {}
        assert "rests for" in stage.why("a")
        stage.wait(rest + 0.5, alive=["w1"], polls=["r1"])
        stage.sync()
        assert stage.running() == {"w1": ["a"]}
    stage.ends("a", "fault", message="disk full")
    assert stage.verdict() == "failed"
    assert stage.steps()["a"].message == "no machine could do it: w1: disk full"
    assert stage.steps()["a"].fault


def test_backoff_ends() -> None:
    stage = building("a:", "w1")
    stage.ends("a", "fault", message="disk full")
    assert stage.states()["a"] == "ready"
    stage.wait(1.0, polls=["r1"])
    assert stage.states()["a"] == "running"


def test_backoff_grows_with_faults_in_a_row() -> None:
    stage = building("all: a b\na:\nb:", "w1")
    stage.ends("a", "fault", message="disk full")
    stage.wait(1.0, alive=["w1"], polls=["r1"])
    stage.sync()
    stage.done(*stage.all_running())
    [name] = stage.all_running()
    stage.ends(name, "fault", message="disk full")
    assert "rests for 1 s after 1 faults in a row" in stage.why(name)


def test_fault_is_a_done_attempt_without_an_artifact() -> None:
    stage = building("a:", "w1", "w2")
    stage.ends("a", "done", stores=False)
    stage.sync()
    assert stage.running() == {"w2": ["a"]}
    stage.done("a")
    assert stage.verdict() == "done"


def test_fault_is_a_task_handed_back_without_draining() -> None:
    stage = building("a:", "w1")
    stage.ends("a", "cancelled")
    assert stage.running() == {}
    assert "it handed the job back" in stage.history("a")


def test_loss_of_a_worker_moves_its_task() -> None:
    stage = building("a:", "w1", "w2")
    assert stage.running() == {"w1": ["a"]}
    stage.wait(9.5, alive=["w2"], polls=["r1"])
    assert stage.states() == {"a": "running"}
    stage.wait(1.0, alive=["w2"], polls=["r1"])
    assert "w1" not in stage.scheduler.state.workers
    stage.sync("w2")
    assert "w2" in stage.running()
    assert stage.steps()["a"].worker == "w2"


def test_loss_of_several_workers_fails_the_task_and_names_them() -> None:
    stage = Stage()
    stage.worker("w1", "w2", "w3", "w4")
    stage.submit("a:")
    for victim in ("w1", "w2", "w3"):
        stage.sync(*stage.machines)
        assert stage.running() == {victim: ["a"]}
        del stage.machines[victim]
        stage.wait(11.0, alive=list(stage.machines), polls=["r1"])
    assert stage.verdict() == "failed"
    assert stage.steps()["a"].message == "it was lost 3 times, with its worker: w1, w2, w3"


def test_loss_counts_when_a_worker_restarts() -> None:
    stage = building("a:", "w1")
    for _ in range(2):
        stage.restart("w1")
        assert stage.running() == {"w1": ["a"]}
    stage.restart("w1")
    assert stage.verdict() == "failed"
    assert "w1" in stage.steps()["a"].message


def test_loss_counts_before_the_attempt_is_confirmed() -> None:
    stage = Stage(limits=Limits(losses=1))
    stage.worker("w1")
    stage.submit("a:")  # assigned, and the worker dies before it reports that
    stage.restart("w1")
    assert stage.verdict() == "failed"


def test_worker_that_is_silent_gets_nothing_new() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.wait(4.0)
    stage.submit("a:")
    assert stage.states() == {"a": "ready"}
    assert "not heard of for 4 s" in stage.why("a")
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_loss_does_not_count_if_the_worker_was_cut_off() -> None:
    stage = building("a:", "w1")
    for _ in range(5):
        stage.wait(11.0, polls=["r1"])
        assert stage.states() == {"a": "ready"}
        stage.sync()
        assert stage.states() == {"a": "running"}
    assert stage.scheduler.state.tasks[key_of("a")].losses == []
    assert not stage.ended
    stage.done("a")
    assert stage.verdict() == "done"


def test_loss_does_not_count_if_the_broker_stood_still() -> None:
    stage = building("a:", "w1")
    stage.now += 1000.0
    stage.handle(events.Tick())
    assert stage.states() == {"a": "running"}
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_store_that_does_not_answer_is_queried_again() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.store_answers = False
    stage.submit("a:")
    stage.refuse_to_answer("no route to host")
    assert "failed to answer 1 times: no route to host" in stage.why("a")
    stage.wait(1.0, alive=["w1"], polls=["r1"])
    stage.answer()
    stage.sync()
    stage.done("a")
    assert stage.verdict() == "done"


@pytest.mark.parametrize("verifying", [False, True])
def test_store_that_never_answers_ends_the_request(verifying: bool) -> None:
    stage = Stage()
    stage.worker("w1")
    stage.store_answers = verifying
    stage.submit("a:")
    stage.store_answers = False
    if verifying:
        stage.sync()
        stage.ends("a", "done")
    for _ in range(5):
        stage.refuse_to_answer("no route to host")
        stage.wait(10.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "failed"
    message = stage.steps()["a"].message
    assert message == "the artifact store does not answer: no route to host"


def test_fault_of_one_worker_fails_no_task() -> None:
    stage = building("a:", "bad")
    stage.ends("a", "fault", message="disk error")
    stage.wait(1.0, alive=["bad"], polls=["r1"])
    stage.sync()
    stage.ends("a", "fault", message="disk error")
    stage.wait(2.0, alive=["bad"], polls=["r1"])
    stage.sync()
    stage.worker("good")  # just in time
    stage.ends("a", "fault", message="disk error")
    stage.sync()
    assert stage.running() == {"good": ["a"]}
    stage.done("a")
    assert stage.verdict() == "done"
