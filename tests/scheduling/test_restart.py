"""Attempts over restarts and partitions: adopted, doomed, or out of date, and never twice."""

from scheduling_kit import Machine, Stage, key_of

from fabric.scheduling import events
from fabric.scheduling.core import FENCES
from fabric.wire.messages import Desired, Report

APP = "app: zlib\nzlib:"


def restarted(old: Stage, *, epoch: int = 2) -> Stage:
    """Another broker in place of one that crashed, with the same workers and store."""
    stage = Stage(epoch=epoch, now=old.now)
    stage.machines, stage.stored = old.machines, old.stored
    stage._names = old._names
    return stage


def test_what_runs_over_a_restart_is_adopted() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    [id] = old.machines["w1"].running
    stage = restarted(old)
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}, "kept, for the request that will come back"
    stage.submit(APP)
    assert stage.steps()["zlib"].fence == id[1]
    stage.sync()
    assert list(stage.machines["w1"].running) == [id]
    stage.done("zlib", "app")
    assert stage.verdict() == "done"
    assert stage.ended[-1].fence > 2 * FENCES


def test_what_is_adopted_needs_nothing_below_it() -> None:
    old = Stage(stored=["zlib"])
    old.worker("w1")
    old.submit(APP)
    old.sync()
    stage = restarted(old)
    stage.sync()
    stage.submit(APP)
    assert stage.asked == [["app"]]
    stage.done("app")
    assert stage.verdict() == "done"


def test_a_worker_that_comes_after_the_request_is_adopted_too() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    stage = restarted(old)
    stage.submit(APP)
    assert stage.states()["zlib"] == "ready"
    stage.sync()
    assert stage.states()["zlib"] == "running"
    assert len(stage.machines["w1"].running) == 1


def test_what_finished_while_no_broker_was_there_counts() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    old.ends("zlib", "done", tell=False)
    stage = restarted(old)
    stage.submit(APP)
    stage.sync()
    assert stage.states() == {"app": "running", "zlib": "cached"}


def test_a_failure_while_no_broker_was_there_counts_if_the_request_is_there() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    old.ends("zlib", "failed", message="no", tell=False)
    stage = restarted(old)
    stage.submit(APP)
    stage.sync()
    assert stage.verdict() == "failed"
    assert stage.steps()["zlib"].message == "no"


def test_what_no_request_claims_is_killed_after_a_while() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    stage = restarted(old)
    stage.wait(29.0, alive=["w1"])
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    stage.wait(2.0, alive=["w1"])
    stage.sync()
    assert stage.running() == {}
    assert not stage.scheduler.ghosts


def test_what_runs_and_turns_out_to_be_stored_is_killed() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    stage = restarted(old)
    stage.sync()
    stage.stored.add(key_of("zlib"))  # by somebody else
    stage.submit(APP)
    stage.sync()
    stage.sync()
    assert stage.running() == {"w1": ["app"]}


def test_what_a_request_was_about_to_claim_is_killed_if_it_leaves() -> None:
    old = Stage()
    old.worker("w1")
    old.submit(APP)
    old.sync()
    stage = restarted(old)
    stage.store_answers = False
    stage.submit(APP, "zlib")
    stage.wait(40.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}, "kept: the store may not have it"
    stage.leave()
    stage.sync()
    assert stage.running() == {}


def test_what_nobody_knows_is_killed_at_once_later_on() -> None:
    stage = Stage()
    stage.wait(60.0)
    machine = stage.machines["w1"] = Machine("w1", 2, "x86_64", ())
    machine.running[key_of("old"), 5] = ""
    stage.sync()
    assert stage.running() == {}


def test_a_stale_attempt_is_killed_and_its_outcome_ignored() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit(APP)
    stage.sync()
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


def test_a_stale_attempt_is_not_adopted_and_holds_back_the_next() -> None:
    """Lost on two workers; then the first of them is there again, and still runs it."""
    stage = Stage()
    stage.worker("w1", "w2", "w3")
    stage.submit(APP)
    stage.sync()
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


def test_what_was_adopted_while_it_waited_and_is_lost_waits_again() -> None:
    """Found by hypothesis: who joined meanwhile has to want what it waits for."""
    old = Stage(stored=["zlib"])
    old.worker("w1")
    old.submit(APP)
    old.sync()
    old.stored.clear()  # somebody removed it
    stage = restarted(old)
    stage.submit(APP)
    stage.sync()
    assert stage.states() == {"app": "running", "zlib": "ready"}
    stage.submit(APP, request="r2")
    stage.leave("r1")
    stage.restart("w1")
    assert stage.states("r2") == {"app": "waiting", "zlib": "running"}
    stage.done("zlib", "app")
    assert stage.verdict("r2") == "done"


def test_a_worker_back_in_time_goes_on() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    [id] = stage.machines["w1"].running
    stage.wait(11.0, polls=["r1"])
    assert stage.states()["zlib"] == "ready"
    stage.sync()
    assert list(stage.machines["w1"].running) == [id]
    assert stage.states()["zlib"] == "running"


def test_a_result_that_was_late_counts_if_nobody_else_is_at_it() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.wait(11.0, polls=["r1"])
    stage.ends("zlib", "done")
    stage.sync()
    assert stage.states()["zlib"] == "done"


def test_a_killed_attempt_holds_back_the_next_until_it_is_gone() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit(APP)
    stage.sync()
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


def test_a_killed_attempt_that_was_quicker_counts() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.leave()
    stage.submit(APP, request="r2")
    stage.ends("zlib", "done")
    stage.sync()
    assert stage.states("r2")["zlib"] == "done"


def test_a_killed_attempt_that_failed_says_nothing_of_the_next() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.leave()
    stage.submit(APP, request="r2")
    stage.ends("zlib", "failed")
    stage.sync()
    assert stage.states("r2")["zlib"] == "running"


def test_an_assignment_that_never_arrived_and_is_wanted_no_more() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)  # assigned, and the message is lost
    stage.leave()
    stage.report("w1")
    assert stage.scheduler.ghosts, "it may still come"
    stage.hear("w1")
    stage.report("w1")
    assert not stage.scheduler.ghosts
    stage.submit(APP, request="r2")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_an_assignment_is_told_until_it_is_confirmed() -> None:
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


def test_old_and_repeated_reports_change_nothing() -> None:
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


def test_an_outcome_is_settled_until_the_worker_forgets_it() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.ends("zlib", "done", tell=False)
    for _ in range(3):
        stage.report("w1")
        desired = stage.scheduler.desired("w1")
        assert desired is not None
        assert [each.key for each in desired.settled] == [key_of("zlib")]
    assert stage.states()["zlib"] == "done"
    assert len(stage.ended) == 1


def test_a_late_report_of_a_former_run_does_not_oust_the_present_one() -> None:
    """A restarted broker hears the present run first, and then a late word of the former."""
    stage = Stage(epoch=2)
    stage.worker("w1")
    former = stage.machines["w1"]
    stage.restart("w1")
    stage.scheduler.workers["w1"].former.clear()  # the restarted broker knows of no other run
    stage.handle(former.report())
    for _ in range(4):
        stage.now += 1.0
        stage.report("w1")
    assert stage.refusals == []
    stage.submit("a:")
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_two_workers_of_one_name() -> None:
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


def test_desires_are_numbered_over_all_workers() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    first, second = stage.scheduler.desired("w1"), stage.scheduler.desired("w2")
    assert isinstance(first, Desired)
    assert isinstance(second, Desired)
    assert first.sequence < second.sequence
    assert stage.scheduler.desired("w3") is None


def test_the_same_events_give_the_same_effects() -> None:
    def play() -> list[str]:
        stage = Stage()
        told = []
        for event, now in history:
            told.append(repr(stage.scheduler.handle(event, now)))
            told.append(repr(stage.scheduler.desired("w1")))
        return told

    stage = Stage()
    history: list[tuple[events.Event, float]] = []
    handle = stage.scheduler.handle

    def recorded(event: events.Event, now: float) -> list[events.Effect]:
        history.append((event, now))
        return handle(event, now)

    stage.scheduler.handle = recorded  # type: ignore[method-assign]
    stage.worker("w1", "w2", slots=2)
    stage.submit("top: a b c d\na:\nb:\nc: a\nd: a b")
    stage.sync()
    stage.done("a", "b")
    stage.ends("c", "fault", message="?")
    stage.done("d")
    assert any(isinstance(event, Report) for event, _ in history)
    assert play() == play()


def test_after_a_restart_nothing_begins_until_workers_had_time_to_speak() -> None:
    stage = Stage(epoch=2, recovering=True)
    stage.submit("a:")
    stage.worker("w1")
    assert stage.running() == {}
    assert stage.why("a") == (
        "a is ready: the broker has just started: workers have 3.0 s to say what they run"
    )
    stage.wait(3.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"w1": ["a"]}
