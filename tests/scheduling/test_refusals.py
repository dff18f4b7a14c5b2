"""Workers that will not: refusals, operators' drains, and all that is nobody's fault."""

from machine_kit import key_of
from msgspec.structs import replace
from scheduling_kit import Stage, building

from fabric.scheduling import events

APP = "app: zlib\nzlib:"


def test_refusal_moves_the_task_and_is_no_fault() -> None:
    stage = building("zlib:", "small", "large")
    assert stage.running() == {"small": ["zlib"]}
    stage.ends("zlib", "refused", message="it needs 40 GiB of disk")
    stage.sync()
    assert stage.running() == {"large": ["zlib"]}
    assert stage.scheduler.state.tasks[key_of("zlib")].fault_count == 0
    assert stage.scheduler.state.workers["small"].faults == 0


def test_refusal_ends_with_its_cooldown() -> None:
    stage = building("zlib:", "w1")
    stage.ends("zlib", "refused", message="no memory")
    stage.wait(5.0, alive=["w1"], polls=["r1"])
    assert stage.why("zlib").endswith("w1: refused it, asked again in 10 s: no memory")
    assert stage.running() == {}
    stage.wait(11.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_refusal_leaves_the_worker_other_tasks() -> None:
    stage = building("all: a b\na:\nb:", "w1")
    stage.ends("a", "refused", message="no memory")
    stage.wait(2.0, alive=["w1"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"w1": ["b"]}


def test_refusals_do_not_fail_a_task() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit("zlib:")
    for _ in range(10):
        stage.sync()
        assert stage.running() == {"w1": ["zlib"]}
        stage.ends("zlib", "refused", message="no memory")
        stage.wait(16.0, alive=["w1"], polls=["r1"])
    stage.sync()
    stage.done("zlib")
    assert stage.verdict() == "done"


def test_refusal_counts_less_than_a_fault() -> None:
    stage = building("zlib:", "sick", "shy")
    stage.ends("zlib", "fault", message="disk error")
    stage.sync()
    assert stage.running() == {"shy": ["zlib"]}
    stage.ends("zlib", "refused", message="no memory")
    stage.wait(14.0, alive=["sick", "shy"], polls=["r1"])
    stage.sync()
    assert stage.running() == {}, "one more fault would be a waste"
    stage.wait(2.0, alive=["sick", "shy"], polls=["r1"])
    stage.sync()
    assert stage.running() == {"shy": ["zlib"]}


def test_refusals_without_end_make_a_worker_no_candidate() -> None:
    stage = building("zlib:", "sick", "shy")
    stage.ends("zlib", "fault", message="disk error")
    stage.sync()
    for _ in range(stage.limits.refusals):
        assert stage.running() == {"shy": ["zlib"]}
        stage.ends("zlib", "refused", message="no memory")
        stage.wait(16.0, alive=["sick", "shy"], polls=["r1"])
        stage.sync()
    assert stage.running() in ({"sick": ["zlib"]}, {"shy": ["zlib"]})
    if stage.running() == {"shy": ["zlib"]}:
        stage.ends("zlib", "refused", message="no memory")
        stage.sync()
    assert stage.running() == {"sick": ["zlib"]}


def test_refusing_worker_gets_nothing_and_is_explained() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.machines["w1"].refusing = "1.2 GiB of disk left"
    stage.sync()
    stage.submit("zlib:")
    stage.sync()
    assert stage.running() == {}
    assert stage.why("zlib").endswith("w1: takes nothing at present: 1.2 GiB of disk left")
    stage.machines["w1"].refusing = ""
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_drain_and_resume_a_worker() -> None:
    stage = building(APP, "w1")
    answer = stage.command("drain", "w1")
    assert answer.lines == ("w1 gets nothing new, and still does 1",)
    assert events.Drained("w1", True) in stage.effects
    stage.command("drain", "w1")
    assert not any(isinstance(each, events.Drained) for each in stage.effects), "it is known"
    [info] = stage.query("workers").workers
    assert (info.state, info.message) == ("draining", "by an operator's word")
    stage.done("zlib")
    assert stage.running() == {}
    assert stage.why("app").endswith("w1: drained by an operator")
    assert stage.query("workers").workers[0].state == "drained"
    assert stage.command("resume", "w1").lines == ("w1 gets work",)
    assert events.Drained("w1", False) in stage.effects
    stage.sync()
    assert stage.running() == {"w1": ["app"]}


def test_drain_outlasts_restarts_of_worker_and_broker() -> None:
    stage = Stage(drained=["w1"])
    stage.worker("w1")
    stage.submit(APP)
    stage.sync()
    stage.restart("w1")
    assert stage.running() == {}
    stage.wait(30.0, polls=["r1"])
    assert not stage.scheduler.state.workers
    assert stage.command("resume", "w1").lines == ("w1 gets work when it comes back",)
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_command_that_comes_late_does_not_undo_a_later_one() -> None:
    """Found by the simulator: a worker that was resumed is drained again, for ever."""
    stage = Stage()
    stage.worker("w1")
    told = stage.command("drain", "w1", id="first")
    stage.command("resume", "w1", id="second")
    assert stage.command("drain", "w1", id="first") == told
    assert stage.query("workers").workers[0].state == "idle"


def test_drain_of_an_unknown_worker() -> None:
    assert Stage().command("drain", "w9").error == (
        "no worker is named w9; `fabric-initiator workers` lists them"
    )
    stage = Stage()
    stage.worker("builder-1")
    error = stage.command("drain", "bulider-1").error
    assert error == "no worker is named bulider-1; did you mean 'builder-1'?"


def once_more(*workers: str, **fields: str) -> Stage:
    """`zlib` is built once more as `again`."""
    stage = Stage()
    stage.worker(*workers)
    graph = stage.submit_of("again: zlib\nzlib:")
    specs = [
        replace(spec, again=key_of("zlib"), **fields) if spec.name == "again" else spec
        for spec in graph.steps
    ]
    stage.handle(replace(graph, steps=tuple(specs)))
    stage.sync()
    return stage


def test_step_is_built_once_more_on_another_worker() -> None:
    stage = once_more("w1", "w2")
    [first] = stage.running()
    stage.done("zlib")
    [other] = stage.running()
    assert {first, other} == {"w1", "w2"}
    stage.done("again")
    assert stage.verdict() == "done"


def test_step_waits_for_another_worker_to_build_it_once_more() -> None:
    stage = once_more("w1", "w2")
    [first] = stage.running()
    other = {"w1": "w2", "w2": "w1"}[first]
    stage.submit("busy:", request="r2")
    stage.sync()
    assert stage.running() == {first: ["zlib"], other: ["busy"]}
    stage.done("zlib")
    assert stage.running() == {other: ["busy"]}
    assert f"{first}: built it the first time, and another" in stage.why("again")
    stage.command("drain", other)
    stage.sync()
    assert stage.running()[first] == ["again"], "no other takes new work"


def test_step_is_built_once_more_where_it_was_if_there_is_no_other() -> None:
    stage = once_more("w1")
    stage.done("zlib", "again")
    assert stage.verdict() == "done"


def test_step_is_built_once_more_where_it_was_if_no_other_is_able() -> None:
    stage = once_more("w1", "w2", built_by="w1")
    [first] = stage.running()
    stage.done("zlib")
    stage.ends("again", "fault", message="no")
    stage.wait(5.0, alive=["w1", "w2"], polls=["r1"])
    stage.sync()
    assert stage.running() == {first: ["again"]}


def test_step_is_built_once_more_anywhere_if_nobody_knows_any_more_where_it_was() -> None:
    stage = once_more("w1", "w2")
    [first] = stage.running()
    stage.done("zlib")
    assert stage.running() != {first: ["again"]}
    zlib = stage.scheduler.state.tasks[key_of("zlib")]
    zlib.builder = ""  # as of one that was found in the store
    stage.wait(12.0, alive=[first], polls=["r1"])
    stage.sync()
    assert stage.running() == {first: ["again"]}


def test_step_that_was_built_before_is_built_once_more_elsewhere() -> None:
    for first, other in (("w1", "w2"), ("w2", "w1")):
        stage = Stage(stored=["zlib"])
        stage.worker("w1", "w2")
        graph = stage.submit_of("again: zlib\nzlib:")
        [again, zlib] = graph.steps
        again = replace(again, again=key_of("zlib"), built_by=first)
        stage.handle(replace(graph, steps=(again, zlib)))
        stage.sync()
        assert stage.running() == {other: ["again"]}
