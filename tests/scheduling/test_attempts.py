"""Attempts over partitions and lost messages: out of date, killed, told of again, never twice."""

import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric.scheduling import events
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import Desired, Report

APP = "app: zlib\nzlib:"


def test_attempt_with_an_old_fence_is_killed_and_its_outcome_ignored() -> None:
    stage = building(APP, "w1", "w2")
    assert stage.running() == {"w1": ["zlib"]}
    stage.wait(11.0, alive=["w2"], polls=["r1"])
    stage.sync("w2")
    [old] = stage.machines["w1"].running
    [new] = stage.machines["w2"].running
    assert old < new
    stage.report("w1")  # cut off, and there again
    assert stage.steps()["zlib"].fence == new[1]
    stage.ends("zlib", "failed", message="out of date")
    assert stage.verdict() == "building"
    stage.sync()
    assert not stage.machines["w1"].running
    stage.done("zlib", "app")
    assert stage.verdict() == "done"


def test_attempt_with_an_old_fence_is_not_adopted_and_blocks_the_next() -> None:
    """Lost on two workers; then the first of them is there again, and still runs it."""
    stage = building(APP, "w1", "w2", "w3")
    first = dict(stage.machines["w1"].running)
    stage.machines["w3"].draining = True
    stage.sync("w3")
    stage.wait(11.0, alive=["w2", "w3"], polls=["r1"])
    stage.sync("w2")
    stage.wait(11.0, alive=["w3"], polls=["r1"])
    assert stage.states()["zlib"] == "ready"
    stage.machines["w3"].draining = False
    stage.machines["w1"].running = first
    stage.report("w1")
    stage.sync("w3")
    assert not stage.machines["w3"].running
    assert stage.states()["zlib"] == "waiting"
    assert "an earlier attempt on w1" in stage.why("zlib")
    stage.sync("w1")
    stage.sync("w1", "w3")
    assert stage.all_running().count("zlib") >= 1
    assert stage.machines["w1"].running.keys() != first.keys()


def test_attempt_goes_on_if_its_worker_is_back_in_time() -> None:
    stage = building(APP, "w1")
    [id] = stage.machines["w1"].running
    stage.wait(11.0, polls=["r1"])
    assert stage.states()["zlib"] == "ready"
    stage.sync()
    assert list(stage.machines["w1"].running) == [id]
    assert stage.states()["zlib"] == "running"


def test_attempt_counts_late_if_no_other_runs() -> None:
    stage = building(APP, "w1")
    stage.wait(11.0, polls=["r1"])
    stage.ends("zlib", "done")
    stage.sync()
    assert stage.states()["zlib"] == "done"


def test_cancelled_attempt_blocks_the_next_until_it_is_gone() -> None:
    stage = building(APP, "w1", "w2")
    stage.leave()
    stage.submit(APP, request="r2")
    assert stage.states("r2")["zlib"] == "waiting"
    stage.hear("w1")
    assert stage.running() == {}
    stage.report("w1")
    stage.sync()
    assert stage.all_running() == ["zlib"]
    stage.done("zlib", "app")
    assert stage.verdict("r2") == "done"


def test_cancelled_attempt_that_does_not_end_blocks_only_its_worker() -> None:
    stage = building(APP, "w1", "w2")
    stage.leave()
    stage.submit(APP, request="r2", detach=True)
    for _ in range(59):
        stage.wait(1.0, alive=["w1", "w2"])
    assert stage.states("r2")["zlib"] == "waiting"
    stage.wait(2.0, alive=["w1", "w2"])
    assert stage.states("r2")["zlib"] == "running"
    stage.hear("w2")
    assert list(stage.machines["w2"].running)
    stage.wait(11.0, alive=["w2"])  # w1 is lost,
    stage.report("w1")  # and back, still at it
    assert stage.states("r2")["zlib"] == "running"
    stage.hear("w1")  # it ends it in the end
    stage.report("w1")
    stage.done("zlib", "app")
    assert stage.verdict("r2") == "done"


def test_cancelled_attempt_that_was_done_first_counts() -> None:
    stage = building(APP, "w1")
    stage.leave()
    stage.submit(APP, request="r2")
    stage.ends("zlib", "done")
    stage.sync()
    assert stage.states("r2")["zlib"] == "done"


def test_cancelled_attempt_that_failed_does_not_fail_the_task() -> None:
    stage = building(APP, "w1")
    stage.leave()
    stage.submit(APP, request="r2")
    stage.ends("zlib", "failed")
    stage.sync()
    assert stage.states("r2")["zlib"] == "running"


def test_assignment_that_never_arrived_is_withdrawn() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)  # assigned, and the message is lost
    stage.leave()
    stage.report("w1")
    assert stage.scheduler.state.dying, "it may still come"
    stage.hear("w1")
    stage.report("w1")
    assert not stage.scheduler.state.dying
    stage.submit(APP, request="r2")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_assignment_is_sent_until_it_is_confirmed() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    for _ in range(3):
        stage.report("w1")
        desired = stage.scheduler.desired("w1")
        assert desired is not None
        assert [each.key for each in desired.start] == [key_of("zlib")]
    stage.sync()
    desired = stage.scheduler.desired("w1")
    assert desired is not None
    assert (desired.start, len(desired.keep)) == ((), 1)


def test_report_that_is_old_or_repeated_changes_nothing() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    old = stage.machines["w1"].report()
    stage.sync()
    stage.done("zlib")
    assert stage.running() == {"w1": ["app"]}
    fence = stage.steps()["app"].fence
    stage.handle(old)
    stage.handle(old)
    assert stage.states() == {"app": "running", "zlib": "done"}
    assert stage.steps()["app"].fence == fence


def test_outcome_is_acknowledged_until_the_worker_forgets_it() -> None:
    stage = building(APP, "w1")
    stage.ends("zlib", "done", tell=False)
    for _ in range(3):
        stage.report("w1")
        desired = stage.scheduler.desired("w1")
        assert desired is not None
        assert [each.key for each in desired.acked] == [key_of("zlib")]
    assert stage.states()["zlib"] == "done"
    assert len(stage.ended) == 1


def test_worker_name_used_twice_is_reported() -> None:
    stage = Stage()
    stage.worker("w1")
    first = stage.machines["w1"]
    stage.restart("w1")
    stage.handle(first.report())
    assert stage.refusals == [], "it may be a late one"
    stage.now += 1.0
    stage.report("w1")
    stage.handle(first.report())
    [refusal] = stage.refusals
    assert "another worker is named w1 too" in refusal.reason
    stage.submit("a:")
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_desired_states_are_numbered_over_all_workers() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    first, second = stage.scheduler.desired("w1"), stage.scheduler.desired("w2")
    assert isinstance(first, Desired)
    assert isinstance(second, Desired)
    assert first.sequence < second.sequence
    assert stage.scheduler.desired("w3") is None


def test_core_gives_the_same_effects_for_the_same_events(monkeypatch: pytest.MonkeyPatch) -> None:
    def play() -> list[str]:
        stage = Stage()
        told = []
        for event, now in history:
            told.append(repr(stage.scheduler.handle(event, now)))
            told.append(repr(stage.scheduler.desired("w1")))
        return told

    stage = Stage()
    history: list[tuple[events.Event, float]] = []
    handle = Scheduler.handle

    def recorded(self: Scheduler, event: events.Event, now: float) -> list[events.Effect]:
        history.append((event, now))
        return handle(self, event, now)

    monkeypatch.setattr(Scheduler, "handle", recorded)
    stage.worker("w1", "w2", slots=2)
    stage.submit("top: a b c d\na:\nb:\nc: a\nd: a b")
    stage.sync()
    stage.done("a", "b")
    stage.ends("c", "fault", message="?")
    stage.done("d")
    monkeypatch.undo()
    assert any(isinstance(event, Report) for event, _ in history)
    assert play() == play()


def test_state_has_slots_only() -> None:
    assert not hasattr(Stage().scheduler.state, "__dict__"), "it is slower without __slots__"
