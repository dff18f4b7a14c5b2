"""Workers that are lost, come back, or do not hear: nothing of them is held, nothing told twice."""

from __future__ import annotations

import gc

import msgspec
import pytest
from machine_kit import Machine, key_of
from scheduling_kit import Stage, building

from fabric import bounds
from fabric.scheduling import events
from fabric.scheduling.model import Worker
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import Outcome

#: One slot, which r1 has; what comes after it is more urgent than all that r2 and r3 want.
LONG = "top: mid\nmid: low\nlow:"


def verifying_on_a_lost_worker() -> Stage:
    """w1 keeps its slot for `mid` while `low` is verified; the store hangs until w1 is lost."""
    stage = Stage()
    stage.worker("w1")
    stage.submit(LONG, request="r1", detach=True)
    stage.submit("other:", request="r2", detach=True, requester="bob")
    stage.submit("c1:\nc2:\nc3:", "c1", "c2", "c3", request="r3", detach=True)
    stage.sync()
    stage.store_answers = False
    stage.ends("low", "done")
    assert stage.scheduler.state.tasks[key_of("low")].reserved_on == "w1"
    stage.wait(11.0)
    assert not stage.scheduler.state.workers
    return stage


@pytest.mark.parametrize("back", ["before the store answers", "after"])
def test_reserved_slot_of_a_lost_worker_is_released(back: str) -> None:
    stage = verifying_on_a_lost_worker()
    if back == "after":
        stage.answer()
    stage.sync("w1")
    if back != "after":
        stage.answer()
    for _ in range(20):
        for name in stage.all_running():
            stage.done(name)
        stage.wait(1.0, alive=["w1"])
        stage.sync()
    assert [stage.verdict(each) for each in ("r1", "r2", "r3")] == ["done"] * 3


def test_lost_worker_is_held_by_nothing() -> None:
    stage = verifying_on_a_lost_worker()
    stage.answer()
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Worker)]


# -- attempts of a worker that was cut off -----------------------------------------------------


def test_lost_worker_that_is_back_ends_its_attempts_once() -> None:
    stage = building("a:", "w1")
    stage.wait(11.0, polls=["r1"])
    assert not stage.ended
    stage.sync()
    stage.ends("a", "done")
    [ended] = stage.ended
    assert ended.outcome is not None
    assert ended.outcome.result == "done"
    assert stage.verdict() == "done"


def test_lost_worker_that_restarted_ends_its_attempts() -> None:
    stage = building("a:", "w1")
    stage.wait(11.0, polls=["r1"])
    stage.restart("w1")
    [ended] = stage.ended
    assert ended.outcome is None
    assert stage.running() == {"w1": ["a"]}


def test_lost_worker_ends_its_attempts_after_absence() -> None:
    stage = building("a:", "w1")
    stage.wait(10.5, polls=["r1"])
    stage.wait(stage.limits.absence - 1.0, polls=["r1"])
    assert not stage.ended
    stage.wait(1.0, polls=["r1"])
    [ended] = stage.ended
    assert ended.outcome is None
    # It comes back all the same: what it is at is killed, and begun anew after that.
    stage.report("w1")
    assert stage.running() == {"w1": ["a"]}
    stage.hear("w1")
    assert stage.running() == {}
    stage.sync("w1")
    assert stage.running() == {"w1": ["a"]}
    assert len(stage.began) == 2
    stage.done("a")
    assert len(stage.ended) == 2


def test_outcome_after_absence_is_no_news() -> None:
    stage = building("a:", "w1")
    stage.ends("a", "failed", tell=False)
    stage.wait(11.0 + stage.limits.absence, polls=["r1"])
    stage.sync("w1")
    assert stage.states() == {"a": "running"}
    assert len(stage.ended) == 1


@pytest.mark.bound("LOST_WORKERS")
def test_lost_workers_are_bounded() -> None:
    scheduler = Scheduler(now=0.0)
    names = [f"s{n}" for n in range(bounds.LOST_WORKERS + 1)]
    effects = scheduler.handle(Stage().submit_of("\n".join(f"{n}:" for n in names), *names), 0.0)
    while questions := [each for each in effects if isinstance(each, events.QueryStore)]:
        effects = []
        for each in questions:
            effects += scheduler.handle(events.StoreAnswered(each.question, frozenset()), 0.0)
    for number in range(len(names)):
        scheduler.handle(Machine(f"w{number}", 1, "x86_64", ()).report(), 0.0)
    assert len(scheduler.state.workers) == len(names)
    effects = scheduler.handle(events.Tick(), 4.0) + scheduler.handle(events.Tick(), 8.0)
    effects += scheduler.handle(events.Tick(), 10.0)
    assert not scheduler.state.workers
    [ended] = [each for each in effects if isinstance(each, events.Ended)]
    assert (ended.worker, ended.outcome) == ("w0", None)


# -- attempts that nobody wanted, and that were quicker than the kill ---------------------------


def test_cancelled_attempt_that_was_done_ends_once_with_its_outcome() -> None:
    stage = building("a:", "w1")
    stage.command("cancel", "r1")
    stage.submit("a:", request="r2")
    stage.ends("a", "done", tell=False)
    stage.report("w1")
    [ended] = stage.ended
    assert ended.outcome is not None
    assert ended.outcome.result == "done"
    assert stage.states("r2") == {"a": "done"}


def test_cancelled_attempt_that_failed_is_tried_again_for_others() -> None:
    stage = building("a:", "w1")
    stage.command("cancel", "r1")
    stage.submit("a:", request="r2")
    stage.ends("a", "failed", tell=False)
    stage.sync("w1")
    assert stage.states("r2") == {"a": "running"}
    [ended] = stage.ended
    assert ended.outcome is not None


# -- workers that do not hear -------------------------------------------------------------------


def test_assignment_that_is_not_taken_goes_to_another_worker() -> None:
    stage = Stage()
    stage.worker("deaf")
    stage.submit("a:")
    stage.wait(2 * stage.limits.lease, alive=["deaf"], polls=["r1"])
    assert stage.states() == {"a": "running"}
    stage.worker("w2")
    stage.wait(0.5, alive=["deaf", "w2"], polls=["r1"])
    stage.sync("w2")
    assert stage.running() == {"w2": ["a"]}
    assert "the worker did not start it (deaf)" in stage.history("a")
    assert stage.scheduler.state.workers["deaf"].backoff_until > stage.now
    assert not stage.scheduler.state.tasks[key_of("a")].losses


def test_assignment_that_is_not_taken_and_unwanted_ends() -> None:
    stage = Stage()
    stage.worker("deaf")
    stage.submit("a:")
    stage.command("cancel", "r1")
    stage.submit("a:", request="r2")
    stage.wait(2 * stage.limits.lease + 0.5, alive=["deaf"], polls=["r2"])
    stage.worker("w2")
    stage.sync("w2")
    assert stage.running() == {"w2": ["a"]}


def test_assignment_that_is_taken_late_is_killed() -> None:
    stage = Stage()
    stage.worker("deaf")
    stage.submit("a:")
    late = stage.scheduler.desired("deaf")
    assert late is not None
    stage.wait(2 * stage.limits.lease + 0.5, alive=["deaf"], polls=["r1"])
    stage.machines["deaf"].obey(late)
    stage.report("deaf")
    stage.worker("w2")
    stage.sync("w2")
    assert "w2" not in stage.running()
    assert "an earlier attempt on deaf" in stage.why("a")
    stage.sync("deaf")
    stage.sync("w2")
    assert stage.running() == {"w2": ["a"]}


# -- workers that make things up ----------------------------------------------------------------


def made_up(number: int, slots: int = 1024) -> Machine:
    """A worker that says that it runs so many steps, and did others."""
    machine = Machine("evil", slots, "x86_64", ())
    for n in range(number):
        machine.running[key_of(f"made up {n}"), n + 1] = "build"
    return machine


def test_token_of_no_attempt_begins_and_blocks_nothing() -> None:
    stage = Stage()
    stage.machines["evil"] = made_up(2000)
    stage.machines["evil"].running[key_of("a"), 2**63 - 1] = "build"
    stage.report("evil")
    stage.submit("a:")
    stage.report("evil")
    assert not stage.began or [each.fence for each in stage.began] == [stage.scheduler.state.fence]
    assert not stage.scheduler.state.orphans
    assert not stage.scheduler.state.dying


@pytest.mark.parametrize("fence", [1, 2**63 - 1])
@pytest.mark.parametrize("result", ["failed", "done", "fault"])
def test_token_of_no_attempt_ends_nothing(fence: int, result: str) -> None:
    stage = building("a:\nb: a", "w1")
    stage.submit("b: a\na:", request="r2")
    stage.machines["evil"] = made_up(0)
    for name in ("a", "b"):
        outcome = {"key": key_of(name), "fence": fence, "result": result}
        stage.machines["evil"].finished[key_of(name), fence] = msgspec.convert(outcome, Outcome)
    stage.machines["evil"].running[key_of("b"), fence] = "build"
    stage.report("evil")
    assert stage.states("r2") == {"a": "running", "b": "waiting"}
    assert not stage.ended


def test_token_of_another_worker_is_not_accepted() -> None:
    stage = building("a:", "w1")
    stage.machines["w1"].running.clear()
    [(id, token)] = stage.machines["w1"].tokens.items()
    stage.machines["evil"] = made_up(0)
    stage.machines["evil"].running[id] = "build"
    stage.machines["evil"].tokens[id] = token
    stage.report("w1")
    stage.report("evil")
    assert "evil" not in {each.worker for each in stage.began}


@pytest.mark.bound("ATTEMPTS_A_SLOT")
def test_report_is_bounded_by_slots() -> None:
    stage = Stage()
    stage.machines["evil"] = made_up(2 * bounds.ATTEMPTS_A_SLOT, slots=2)
    stage.report("evil")
    assert not stage.refusals
    stage.machines["worse"] = made_up(2 * bounds.ATTEMPTS_A_SLOT + 1, slots=2)
    stage.machines["worse"].name = "worse"
    stage.report("worse")
    [refusal] = stage.refusals
    assert refusal.about == "worse"
    assert refusal.reason == "worse reports 65 attempts; with its slots it may have 64"
    assert "worse" not in stage.scheduler.state.workers


@pytest.mark.bound("UNACKNOWLEDGED")
def test_worker_with_many_unacknowledged_outcomes_gets_nothing_new() -> None:
    stage = Stage()
    names = [f"s{n}" for n in range(bounds.UNACKNOWLEDGED + 2)]
    stage.worker("w1")
    stage.submit("\n".join(f"{name}:" for name in names), *names)
    machine = stage.machines["w1"]
    for _ in names:
        stage.report("w1")
        desired = stage.scheduler.desired("w1")
        assert desired is not None
        # Their logs are not whole, so the broker does not settle them.
        machine.obey(msgspec.structs.replace(desired, acked=()))
        for name in stage.all_running():
            stage.ends(name, "done", tell=False)
    assert len(machine.finished) == bounds.UNACKNOWLEDGED
    stage.sync()
    stage.sync()
    assert stage.all_running()


# -- damage --------------------------------------------------------------------------------------


def test_orphan_attempt_rebuilds_a_damaged_artifact() -> None:
    """While the store inspects `a`, a worker of a former run turns out to be at it."""
    stage = building("b: a\na:", "w1")
    stage.done("a")
    stage.store_answers = False
    stage.spoilt.add(key_of("a"))
    stage.ends("b", "fault", damaged=["a"])
    machine = Machine("w2", 1, "x86_64", ())
    fence = stage.scheduler.state.tasks[key_of("a")].fence = (
        5  # all that is known is of a former run
    )
    machine.running[key_of("a"), fence] = "build"
    machine.tokens[key_of("a"), fence] = stage.scheduler.state.token(key_of("a"), fence, "w2")
    stage.machines["w2"] = machine
    stage.report("w2")
    stage.answer()
    stage.sync()
    assert stage.running() == {"w2": ["a"]}
    assert [each.worker for each in stage.began if each.key == key_of("a")] == ["w1", "w2"]


def test_ended_attempt_blocks_nothing_however_often_it_is_reported() -> None:
    stage = building("zlib:", "w1")
    liar = stage.machines["w1"]
    ended = dict(liar.running)
    liar.draining = True  # it takes nothing new
    stage.ends("zlib", "cancelled")
    for n in range(3):
        liar.running = ended.copy()
        stage.report("w1")
        stage.worker(f"other {n}")
        assert stage.running()[f"other {n}"] == ["zlib"]
        liar.running = {}
        stage.report("w1")
        stage.machines[f"other {n}"].draining = True
        stage.ends("zlib", "cancelled")


def test_attempt_of_a_former_run_of_a_worker_is_over() -> None:
    """A worker that is lost each time, and comes back as another with what it had of old."""
    old = building("zlib:", "w1")
    [id] = old.machines["w1"].running
    stage = Stage(epoch=2, recovering=True)
    stage.worker("w2")
    stage.machines["w1"] = liar = old.machines["w1"]
    stage.wait(40.0, alive=["w2"])
    for n in range(3):
        liar.instance = f"run {n}"
        liar.running = {id: ""}
        stage.report("w1")
        stage.submit("zlib:", request=f"r{n}")
        stage.sync("w2")
        held_back = stage.states(f"r{n}")["zlib"] == "waiting"
        assert held_back == (n == 0)
        stage.leave(f"r{n}")
        stage.sync("w2")
        stage.wait(11.0, alive=["w2"])
