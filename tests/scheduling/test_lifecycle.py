"""Requests share work, and come and go without disturbing each other."""

from scheduling_kit import Stage, building

APP = "app: zlib\nzlib:"


def test_task_of_two_requests_is_built_once() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit(APP)
    stage.submit("tool: zlib\nzlib:", request="r2")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    stage.done("zlib")
    assert stage.all_running() == ["app", "tool"]
    stage.done("app", "tool")
    assert (stage.verdict("r1"), stage.verdict("r2")) == ("done", "done")
    assert len(stage.ended) == 3


def test_leave_drops_tasks_that_no_other_request_wants() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit("app: zlib xz\nzlib:\nxz:")
    stage.submit("tool: zlib\nzlib:", request="r2")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"], "w2": ["xz"]}
    stage.leave("r1")
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    stage.done("zlib", "tool")
    assert stage.verdict("r2") == "done"


def test_failed_request_leaves_shared_tasks_to_the_other() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit("app: bad zlib\nbad:\nzlib:", fail_fast=True)
    stage.submit("tool: zlib\nzlib:", request="r2")
    stage.sync()
    stage.ends("bad", "failed")
    stage.sync()
    assert stage.verdict("r1") == "failed"
    assert stage.running() == {"w2": ["zlib"]}
    stage.done("zlib", "tool")
    assert stage.verdict("r2") == "done"


def test_patience_ends_the_request_of_a_silent_initiator() -> None:
    stage = building(APP, "w1")
    stage.wait(14.0, alive=["w1"])
    assert stage.scheduler.state.requests
    stage.wait(2.0, alive=["w1"])
    stage.sync()
    assert not stage.scheduler.state.requests
    assert not stage.scheduler.state.tasks
    assert stage.running() == {}


def test_patience_is_renewed_by_polls() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.wait(60.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "building"


def test_patience_that_ended_allows_to_submit_again() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.wait(20.0, alive=["w1"])
    stage.poll()
    assert [each.code for each in stage.refusals] == ["unknown-request"]
    stage.submit(APP)
    assert "an earlier attempt on w1, no longer wanted, has not ended yet" in stage.why("zlib")
    stage.sync()
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}


def test_graph_that_comes_again_changes_nothing() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    version = stage.update().version
    stage.submit(APP)
    assert stage.update().version == version
    assert len(stage.scheduler.state.requests) == 1


def test_graph_that_comes_late_does_not_revive_a_request() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(APP)
    stage.leave()
    stage.submit(APP)
    assert stage.verdict() == "cancelled"
    assert not stage.scheduler.state.tasks


def test_leave_before_the_graph() -> None:
    stage = Stage()
    stage.leave()
    stage.submit(APP)
    assert not stage.scheduler.state.tasks


def test_store_answer_for_an_unwanted_task_is_ignored() -> None:
    stage = Stage()
    stage.store_answers = False
    stage.submit(APP)
    stage.leave()
    stage.submit(APP, request="r2")
    stage.answer()
    assert stage.states("r2") == {"app": "waiting", "zlib": "ready"}


def test_update_omits_steps_that_were_never_known() -> None:
    stage = Stage()
    stage.store_answers = False
    stage.submit(APP)
    stage.leave()
    assert stage.verdict() == "cancelled"
    assert stage.update().steps == ()


def test_update_has_only_news() -> None:
    stage = building("app: a b\na:\nb:", "w1")
    first = stage.update()
    assert len(first.steps) == 3
    assert stage.update(seen=first.version).steps == ()
    stage.done("a")
    news = stage.update(seen=first.version)
    assert news.version > first.version
    assert {step.state for step in news.steps} == {"done", "running"}


def test_update_has_phases() -> None:
    stage = building("a:", "w1")
    seen = stage.update().version
    [id] = stage.machines["w1"].running
    stage.machines["w1"].running[id] = "configure"
    stage.now += 7.0
    stage.report("w1")
    [step] = stage.update(seen=seen).steps
    assert (step.phase, step.worker, step.running_for) == ("configure", "w1", 7.0)


def test_update_of_a_request_that_joins_a_running_task() -> None:
    stage = building("a:", "w1")
    stage.submit("b: a\na:", request="r2")
    assert stage.states("r2") == {"b": "waiting", "a": "running"}


def test_task_that_is_blocked_passes_its_needs_to_a_request_that_joins() -> None:
    stage = Stage()
    stage.worker("w1")
    text = "top: mid\nmid: base\nbase:"
    stage.submit(text)
    stage.sync()
    stage.submit(text, "mid", request="r2")
    stage.leave("r1")
    stage.sync()
    assert stage.running() == {"w1": ["base"]}
    stage.done("base", "mid")
    assert stage.verdict("r2") == "done"


def test_task_that_was_present_is_queried_again_for_others() -> None:
    """Found by the simulator: `base` is forgotten while `app`, which needed it, goes on."""
    stage = building("app: base\nbase:", "w1")
    stage.done("base")
    stage.submit("app: base\nbase:", request="r2")  # joins what runs already
    stage.leave("r1")
    stage.store_answers = False
    stage.restart("w1")
    stage.submit("app: base\nbase:", "app", "base", request="r3")
    assert stage.states("r2") == {"app": "running"}
    stage.answer()
    stage.done("app")
    assert (stage.verdict("r2"), stage.verdict("r3")) == ("done", "done")
