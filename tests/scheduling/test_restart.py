"""What runs when the broker ends: adopted by the next, or killed, and never begun twice."""

from machine_kit import Machine, key_of
from scheduling_kit import Stage, building

from fabric.scheduling.state import FENCES

APP = "app: zlib\nzlib:"


def restarted(old: Stage, *, epoch: int = 2) -> Stage:
    """Another broker in place of one that crashed, with the same workers and store."""
    stage = Stage(epoch=epoch, now=old.now)
    stage.machines, stage.stored = old.machines, old.stored
    stage._names = old._names
    return stage


def test_restart_adopts_running_attempts() -> None:
    old = building(APP, "w1")
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


def test_restart_adopts_without_building_dependencies() -> None:
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


def test_restart_adopts_attempts_of_a_late_worker() -> None:
    old = building(APP, "w1")
    stage = restarted(old)
    stage.submit(APP)
    assert stage.states()["zlib"] == "ready"
    stage.sync()
    assert stage.states()["zlib"] == "running"
    assert len(stage.machines["w1"].running) == 1


def test_restart_counts_outcomes_of_the_meantime() -> None:
    old = building(APP, "w1")
    old.ends("zlib", "done", tell=False)
    stage = restarted(old)
    stage.submit(APP)
    stage.sync()
    assert stage.states() == {"app": "running", "zlib": "cached"}


def test_restart_counts_failures_of_the_meantime_for_known_requests() -> None:
    old = building(APP, "w1")
    old.ends("zlib", "failed", message="no", tell=False)
    stage = restarted(old)
    stage.submit(APP)
    stage.sync()
    assert stage.verdict() == "failed"
    assert stage.steps()["zlib"].message == "no"


def test_restart_kills_orphans_after_grace() -> None:
    old = building(APP, "w1")
    stage = restarted(old)
    stage.wait(29.0, alive=["w1"])
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    stage.wait(2.0, alive=["w1"])
    stage.sync()
    assert stage.running() == {}
    assert not stage.scheduler.state.dying


def test_orphan_is_killed_if_its_artifact_is_present() -> None:
    old = building(APP, "w1")
    stage = restarted(old)
    stage.sync()
    stage.stored.add(key_of("zlib"))  # by somebody else
    stage.submit(APP)
    stage.sync()
    stage.sync()
    assert stage.running() == {"w1": ["app"]}


def test_orphan_is_killed_if_its_request_leaves() -> None:
    old = building(APP, "w1")
    stage = restarted(old)
    stage.store_answers = False
    stage.submit(APP, "zlib")
    stage.wait(40.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}, "kept: the store may not have it"
    stage.leave()
    stage.sync()
    assert stage.running() == {}


def test_orphan_is_killed_at_once_after_grace() -> None:
    stage = Stage()
    stage.wait(60.0)
    machine = stage.machines["w1"] = Machine("w1", 2, "x86_64", ())
    machine.running[key_of("old"), 5] = ""
    stage.sync()
    assert stage.running() == {}


def test_restart_expands_a_lost_adopted_task_again() -> None:
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


def test_report_of_a_former_run_does_not_oust_the_present_one() -> None:
    """A restarted broker hears the present run first, and then a late word of the former."""
    stage = Stage(epoch=2)
    stage.worker("w1")
    former = stage.machines["w1"]
    stage.restart("w1")
    stage.scheduler.state.workers["w1"].former.clear()  # the restarted broker knows of no other run
    stage.handle(former.report())
    for _ in range(4):
        stage.now += 1.0
        stage.report("w1")
    assert stage.refusals == []
    stage.submit("a:")
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_restart_assigns_nothing_until_workers_have_reported() -> None:
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
