"""What people ask, and what they are told."""

import msgspec
import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric import bounds
from fabric.scheduling import events
from fabric.scheduling.model import Attempt
from fabric.scheduling.requests import KEPT
from fabric.scheduling.step_names import NameQuery
from fabric.wire.messages import PROTOCOL, AttemptInfo, BuildOrder, GraphStep, Query, QueryKind

APP = "app: zlib\nzlib:"


def test_query_lists_requests() -> None:
    stage = Stage(stored=["base"])
    stage.worker("w1")
    stage.submit("app: zlib base\nzlib:\nbase:", request="r1", requester="alice", priority=3)
    stage.order("r2", requester="bob", detach=True)
    stage.sync()
    stage.now += 5.0
    mine, theirs = stage.query("requests").requests
    assert (mine.request, mine.title, mine.requester, mine.state) == (
        "r1",
        "a test",
        "alice",
        "building",
    )
    assert (mine.done, mine.cached, mine.total, mine.running) == (0, 1, 3, 1)
    assert (mine.since, mine.priority, mine.detached) == (5.0, 3, False)
    assert (theirs.state, theirs.detached, theirs.requester) == ("resolving", True, "bob")
    assert theirs.message == "its definitions are being resolved, for 5.0 s"
    stage.done("zlib")
    stage.ends("app", "failed", message="no such file")
    mine = stage.query("requests").requests[0]
    assert (mine.state, mine.done, mine.failed, mine.total) == ("failed", 1, 1, 3)
    assert mine.message == "app"


def test_query_shows_a_cancelled_request() -> None:
    stage = building(APP, "w1")
    stage.leave()
    [info] = stage.query("requests").requests
    assert (info.state, info.total, info.message) == ("cancelled", 2, "left by its initiator")


def test_query_lists_workers_with_their_attempts() -> None:
    stage = Stage()
    stage.worker("w1", slots=2, features=("kvm",))
    stage.submit(APP)
    stage.sync()
    stage.now += 2.0
    [info] = stage.query("workers").workers
    assert (info.name, info.arch, info.slots, info.features) == ("w1", "x86_64", 2, ("kvm",))
    assert (info.since, info.heard, info.state) == (2.0, 2.0, "busy")
    [step] = info.running
    assert (step.name, step.state, step.running_for) == ("zlib", "running", 2.0)
    stage.now += 2.0
    assert stage.query("workers").workers[0].state == "silent"


def test_query_shows_an_unwanted_attempt() -> None:
    stage = building("app:", "w1")
    stage.leave()
    [step] = stage.query("workers").workers[0].running
    assert (step.name, step.state) == ("app", "cancelled")


def test_query_shows_a_worker_in_backoff() -> None:
    stage = building("app:", "w1", "w2")
    stage.ends("app", "fault", message="disk error")
    info = stage.query("workers").workers[0]
    assert (info.state, info.message) == ("resting", "rests for 1 s after 1 faults in a row")


@pytest.mark.parametrize("what", ["why", "update", "requests"])
def test_query_of_a_request_that_is_still_checked_changes_nothing(what: QueryKind) -> None:
    """Of two steps that the request needs one is ready, and it takes longest."""
    stage = Stage(durations={("chunk", "zlib", "x86_64"): 1000.0})
    stage.store_answers = False
    stage.worker("w1")
    stage.submit("app: lib\nlib: base\nbase:\nzlib:", "app", "zlib", needs={"zlib": ("kvm",)})
    stage.answer_first()
    assert stage.asked == [["app", "zlib"], ["lib"]]
    about = {"why": key_of("zlib"), "update": "r1", "requests": ""}[what]
    answer = stage.query(what, about)
    if what == "why":
        said = "\n".join(answer.lines)
        assert "zlib is ready: the artifact store is still asked what else has to be built" in said


def test_why_finds_a_step_by_each_of_its_names() -> None:
    stage = Stage()
    stage.submit(APP)
    told = ("zlib is ready: there is no worker",)
    for about in ("zlib", "zlib-misc", "zlib-bins", "build-step-zlib-misc.log", key_of("zlib")):
        assert stage.query("why", about).lines == told, about
    assert stage.query("why", key_of("zlib")[:8]).lines == told


def test_why_prefers_an_exact_name() -> None:
    stage = Stage()
    stage.submit("all: glib glib-networking\nglib:\nglib-networking:")
    [line] = stage.query("why", "glib-networking").lines
    assert line.startswith("glib-networking is ready")


def test_why_explains_a_request() -> None:
    stage = Stage()
    stage.submit(APP, request="abcdef")
    assert stage.query("why", "abcd").lines == (
        "a test is building",
        "zlib is ready: there is no worker",
    )
    stage.worker("w1")
    stage.sync()
    assert stage.query("why", "abcdef").lines == (
        "a test is building",
        "zlib is running: building on w1 for 0 s of about 60",
    )
    stage.ends("zlib", "failed", message="Error 1")
    assert stage.query("why", "abcdef").lines == ("a test is failed", "zlib")


def test_why_explains_a_request_that_is_over() -> None:
    stage = building(APP, "w1")
    stage.ends("zlib", "failed", message="make: *** Error 1")
    assert stage.query("why", "zlib").lines == ("zlib is failed on w1: make: *** Error 1",)


def test_why_reports_an_unknown_name() -> None:
    stage = Stage()
    assert stage.query("why", "nothing").error == (
        "'nothing': no such build or step; `fabric-initiator list` lists builds,"
        " and `fabric-initiator status ID` the steps of one"
    )
    assert stage.query("why", "").error


def test_pinned_keys_are_all_that_live_requests_may_need() -> None:
    stage = Stage(stored=["app"])
    stage.submit("app: zlib\nzlib:", request="over")
    stage.submit("top: app\napp: zlib\nzlib:", request="live")
    assert set(stage.query("pinned").keys) == {key_of("top"), key_of("app"), key_of("zlib")}
    stage.leave("live")
    assert stage.query("pinned").keys == ()


def test_logs_of_live_and_past_steps() -> None:
    stage = building(APP, "w1")
    [running] = stage.query("logs", "zlib").logs
    assert (running.key, running.name, running.log, running.state) == (
        key_of("zlib"),
        "zlib",
        "build-step-zlib-misc.log",
        "running",
    )
    assert running.fence > 0
    stage.done("zlib")
    stage.ends("app", "failed")
    assert [(each.name, each.state) for each in stage.query("logs").logs] == [
        ("zlib", "done"),
        ("app", "failed"),
    ]


def test_step_index_finds_live_and_past_steps_by_each_name() -> None:
    stage = Stage()
    stage.worker("w1", slots=9)
    stage.submit("zlib:\nzlib-ng:\nlua:", "zlib", "zlib-ng", "lua", request="r1")
    stage.sync()

    def found(about: str) -> list[str]:
        return [each.name for each in stage.query("logs", about).logs]

    for _ in range(2):
        assert found("zlib") == ["zlib"]
        assert found("zlib-misc") == ["zlib"]
        assert found("build-step-zlib-ng-misc.log") == ["zlib-ng"]
        assert found("zlib-ng-bins") == ["zlib", "zlib-ng"]  # neither is called so
        assert found(key_of("lua")) == ["lua"]
        assert found(key_of("lua")[:6]) == ["lua"]
        assert found(key_of("lua")[:5]) == []
        assert found("zl") == []
        assert found("-" * 4096) == []
        stage.done(*stage.all_running())
    assert stage.verdict() == "done"


def test_step_index_finds_all_steps_of_one_name() -> None:
    stage = Stage()
    stage.worker("w1", slots=9)
    first = stage.submit_of("a:\nb:\nc:", "a", "b", "c")
    same = tuple(msgspec.structs.replace(spec, name="same") for spec in first.steps)
    stage.handle(msgspec.structs.replace(first, steps=same))
    stage.sync()
    keys = {each.key for each in stage.query("logs", "same").logs}
    assert keys == {key_of(name) for name in "abc"}


def test_step_index_is_made_again_once_a_request_is_resolved() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.order()
    assert stage.query("logs", "zlib").logs == ()
    stage.resolve("zlib:")
    stage.sync()
    assert [each.name for each in stage.query("logs", "zlib").logs] == ["zlib"]


def test_name_query_is_bounded() -> None:
    assert NameQuery("zlib-and-more-misc").beginnings == ["zlib", "zlib-and", "zlib-and-more"]
    assert len(NameQuery("c-" * 2000).beginnings) == len(NameQuery("-" * 4096).beginnings) == 8


def test_query_cuts_long_titles() -> None:
    stage = Stage()
    order = BuildOrder(PROTOCOL, "r1", "t" * 4096, "refs/x", "c" * 40, "s.morph")
    stage.handle(order)
    [info] = stage.query("requests").requests
    assert len(info.title) == 200
    assert info.title.endswith("t ... (cut: it has 4,096 characters)")


# -- queries of a web page -----------------------------------------------------------------------


def test_update_is_read_without_keeping_the_request_alive() -> None:
    stage = building(APP, "w1")
    for _ in range(60):
        stage.wait(0.5, alive=["w1"])
        assert stage.query("update", "r1").update is not None or stage.now >= 115
    assert "r1" not in stage.scheduler.state.requests, "its initiator was silent"
    assert stage.query("update", "r1").update is None
    assert stage.query("graph", "r1").graph == ()


def test_update_of_a_request_is_what_its_initiator_gets() -> None:
    stage = building(APP, "w1")
    first = stage.query("update", "r1").update
    assert first == stage.update()
    assert first is not None
    stage.done("zlib")
    second = stage.query("update", "r1", first.version).update
    assert second == stage.update(seen=first.version)
    stage.done("app")
    stage.leave()
    assert stage.query("update", "r1").update == stage.update()  # over, and remembered


def test_update_and_graph_take_the_beginning_of_an_id() -> None:
    stage = Stage()
    stage.submit(APP, request="abcdef12")
    stage.submit(APP, request="abcdef34")
    update = stage.query("update", "abcdef1").update
    assert update is not None
    assert update.request == "abcdef12"
    assert len(stage.query("graph", "abcdef1").graph) == 2
    assert stage.query("update", "abcd").update is None, "there are two"
    assert stage.query("graph", "abcd").graph == ()
    assert stage.query("update", "abc").update is None, "too short"


def test_graph_lists_what_each_step_needs() -> None:
    stage = Stage(stored=["base"])
    stage.worker("w1")
    stage.submit("app: zlib base\nzlib: base\nbase: libc\nlibc:")
    stage.sync()

    def shown() -> list[tuple[str, list[str]]]:
        graph = stage.query("graph", "r1").graph
        return [(each.name, [graph[n].name for n in each.depends]) for each in graph]

    whole = [("app", ["zlib", "base"]), ("zlib", ["base"]), ("base", ["libc"]), ("libc", [])]
    assert shown() == whole
    assert {each.kind for each in stage.query("graph", "r1").graph} == {"chunk"}
    stage.done("zlib", "app")
    stage.leave()
    assert stage.verdict() == "done"
    assert shown() == whole, "also when it is over"


def test_graph_of_a_request_of_a_former_broker_has_the_steps_that_are_known() -> None:
    before = building(APP, "w1")
    before.done("zlib", "app")
    stage = Stage(epoch=2)
    stage.handle(events.Remembered(before.update(), "alice", 50.0, 20.0))
    assert stage.query("graph", "r1").graph == (
        GraphStep(key_of("zlib"), "zlib", "chunk"),
        GraphStep(key_of("app"), "app", "chunk"),
    )


@pytest.mark.bound("GRAPHS_KEPT")
def test_graphs_of_requests_that_are_over_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "GRAPHS_KEPT", 5)
    stage = Stage(stored=["app"])
    for n in range(4):
        stage.submit(APP, request=f"r{n}")
        stage.leave(f"r{n}")
    lengths = [len(stage.query("graph", f"r{n}").graph) for n in range(4)]
    assert lengths == [1, 1, 2, 2]  # of a forgotten graph only the results are left
    assert stage.scheduler.state.graph_steps == 4
    stage.submit("a: b c d e f g\nb:\nc:\nd:\ne:\nf:\ng:", request="large")
    stage.leave("large")
    assert len(stage.query("graph", "large").graph) == 7, "the last one is kept, however large"
    assert stage.scheduler.state.graph_steps == 7
    for n in range(KEPT + 1):
        stage.submit("app:", request=f"n{n}")
        stage.leave(f"n{n}")
    assert len(stage.scheduler.state.graphs) <= 5


def attempts(stage: Stage, about: str = "") -> list[AttemptInfo]:
    return list(stage.query("attempts", about).attempts)


def test_attempts_that_run_have_the_times_of_their_phases() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit("app: zlib xz\nzlib:\nxz:")
    stage.sync()
    [id] = stage.machines["w1"].running
    for phase in ("fetch", "build", "build", "store"):
        stage.now += 1.0
        stage.machines["w1"].running[id] = phase
        stage.report("w1")
    stage.now += 1.0
    both = attempts(stage)
    assert [(each.name, each.kind, each.worker) for each in both] == [
        ("zlib", "chunk", "w1"),
        ("xz", "chunk", "w2"),
    ]
    first = both[0]
    assert (first.ago, first.seconds, first.number, first.result) == (5.0, 5.0, 0, "")
    assert first.phases == (("fetch", 1.0), ("build", 2.0), ("store", 4.0))
    assert attempts(stage, "r1") == both
    assert attempts(stage, "w1") == attempts(stage, key_of("zlib")) == [first]
    assert attempts(stage, "w3") == attempts(stage, key_of("app")) == []
    stage.ends("zlib", "done")
    assert stage.ended[-1].phases == (("fetch", 101.0), ("build", 102.0), ("store", 104.0))
    assert [each.name for each in attempts(stage)] == ["xz"]


def test_attempts_tell_why_they_do_not_count() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit("app: zlib xz\nzlib:\nxz:", detach=True)
    stage.sync()
    stage.wait(20.0, alive=["w2"])
    lost = next(each for each in attempts(stage) if each.worker == "w1")
    assert (lost.name, lost.message) == ("zlib", "its worker is lost, and may come back")
    stage.command("cancel", "r1")
    stage.command("cancel", "r1")
    told = {each.worker: each.message for each in attempts(stage)}
    assert told["w2"] == "no build wants it any more"


@pytest.mark.bound("PHASES")
def test_phases_of_an_attempt_are_bounded() -> None:
    stage = building("app:", "w1")
    [id] = stage.machines["w1"].running
    for n in range(bounds.PHASES + 10):
        stage.machines["w1"].running[id] = f"phase {n}"
        stage.report("w1")
    [attempt] = attempts(stage)
    assert [phase for phase, _ in attempt.phases] == [f"phase {n}" for n in range(bounds.PHASES)]


@pytest.mark.bound("ATTEMPTS_RUNNING")
def test_attempts_that_run_are_bounded_in_an_answer() -> None:
    stage = building("app:", "w1")
    held = stage.scheduler.state.workers["w1"].held
    for n in range(bounds.ATTEMPTS_RUNNING + 10):
        held["a" * 64, n] = Attempt("a" * 64, n, "w1", 0.0)
    answer = stage.scheduler.answer(Query(PROTOCOL, "q", "attempts"), stage.now)
    assert len(answer.attempts) == bounds.ATTEMPTS_RUNNING
