"""The mirror of a request."""

from mirror_kit import DETACHED, GRAPH, KEY, ORDER, TEXT, Tale, sha

from fabric.client.request import MANY, Changed, Over
from fabric.client.request_logs import OpenLog, Send
from fabric.wire.messages import (
    BuildGraph,
    Leave,
    Poll,
    Rejected,
    StepState,
    Update,
)


def test_request_is_submitted_with_growing_delays() -> None:
    tale = Tale()
    times = []
    for _ in range(120):
        before = len(tale.sent)
        tale.tick(0.125)
        times += [tale.now] * (len(tale.sent) - before)
    assert times == [0.125, 1.125, 3.125, 7.125]
    assert all(isinstance(each, BuildGraph) for each in tale.sent)
    tale.update()
    tale.sent.clear()
    tale.tick(10.0)
    assert tale.sent == [Poll("r1", 1)]


def test_request_reports_changes_once() -> None:
    tale = Tale()
    tale.tick()
    step = StepState(KEY, "ready")
    assert tale.update(step) == [Changed(None, step)]
    assert tale.update(step) == []
    later = StepState(KEY, "running", fence=1)
    assert tale.update(later) == [Changed(step, later)]
    assert tale.update(StepState(KEY, "done"), state="done") == [
        Changed(later, StepState(KEY, "done")),
        Over("done", ""),
    ]
    assert tale.update(state="done") == []


def test_request_ignores_old_and_foreign_updates() -> None:
    tale = Tale()
    tale.tick()
    tale.update(StepState(KEY, "ready"))
    tale.update(StepState(KEY, "running", fence=1))
    old = Update("r1", 1, "building", (StepState(KEY, "ready"),))
    assert tale.mirror.update(old, 0.0) == []
    other = Update("r2", 9, "failed", (StepState(KEY, "failed"),))
    assert tale.mirror.update(other, 0.0) == []
    assert tale.mirror.steps[KEY].state == "running"


def test_request_acknowledges_a_large_update_at_once() -> None:
    tale = Tale()
    tale.tick()
    tale.sent.clear()
    tale.update(*(StepState(f"{n:064x}", "ready") for n in range(MANY + 1)))
    assert tale.sent == [Poll("r1", 1)]


def test_request_is_submitted_again_to_a_broker_that_forgot_it() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.sent.clear()
    actions = tale.mirror.rejected(Rejected("r1", "unknown-request", "?"), tale.now)
    assert [type(action) for action in actions] == [Changed]
    assert tale.mirror.steps[KEY].state == "waiting"
    tale.tick(0.1)
    assert tale.sent == [GRAPH]
    assert tale.running(fence=7)
    tale.update(StepState(KEY, "done"))
    assert tale.update(StepState(KEY, "cached")) == [], "it is the same news"


def test_request_resets_steps_that_a_new_beginning_leaves_out() -> None:
    """Found by the simulator: after a request was done, a step that another request had built
    meanwhile still counted as failed.
    """
    tale = Tale()
    tale.tick()
    failed, built, other = f"{1:064x}", f"{2:064x}", f"{3:064x}"
    steps = (StepState(failed, "failed"), StepState(built, "done"), StepState(other, "running"))
    tale.mirror.update(Update("r1", 5, "building", steps, goals=(other,)), tale.now)
    assert not tale.mirror.update(Update("r1", 6, "building", steps, goals=(other,)), tale.now)
    begun_anew = Update("r1", 9, "building", (StepState(other, "ready"),), goals=(other,))
    tale.mirror.update(begun_anew, tale.now)
    states = {key: step.state for key, step in tale.mirror.steps.items()}
    assert states == {failed: "waiting", built: "done", other: "ready"}


def test_request_that_is_rejected_is_over() -> None:
    tale = Tale()
    tale.tick()
    rejected = Rejected("r1", "protocol", "upgrade the broker")
    [over] = tale.mirror.rejected(rejected, tale.now)
    assert over == Over("failed", "upgrade the broker", rejected=True)
    assert tale.mirror.complete
    assert tale.mirror.rejected(rejected, tale.now) == []
    tale.sent.clear()
    tale.tick(5.0)
    assert tale.sent == []


def test_request_leave_cancels() -> None:
    tale = Tale()
    tale.tick()
    assert tale.mirror.leave() == [Send(Leave("r1"))]
    assert tale.mirror.over


def test_request_of_a_build_order_is_repeated_and_resolved() -> None:
    tale = Tale(ORDER)
    assert tale.mirror.state == "resolving"
    tale.tick()
    tale.tick(1.0)
    assert tale.sent == [ORDER, ORDER]
    tale.update(state="resolving")
    assert (tale.mirror.state, tale.mirror.title) == ("resolving", "an order")
    update = Update("r1", 9, "checking", (), title="its title", goals=(KEY,))
    tale.mirror.update(update, tale.now)
    tale.mirror.update(Update("r1", 10, "building"), tale.now)
    assert (tale.mirror.title, tale.mirror.goals) == ("its title", (KEY,))


def test_request_leave_does_not_end_a_detached_one() -> None:
    tale = Tale(DETACHED)
    tale.tick()
    tale.update()
    assert tale.mirror.leave() == [Send(Leave("r1"))]
    assert not tale.mirror.over


def test_request_of_another_initiator_is_followed() -> None:
    tale = Tale("r1")
    tale.tick()
    tale.tick(1.0)
    assert tale.sent == [Poll("r1", 0), Poll("r1", 0)], "asked until it is answered"
    tale.mirror.update(Update("r1", 1, "building", title="theirs", goals=(KEY,)), tale.now)
    tale.version = 1
    assert (tale.mirror.title, tale.mirror.goals) == ("theirs", (KEY,))
    tale.running()
    tale.hint(0, TEXT)
    tale.done()
    assert (tale.file, tale.closed) == (TEXT, True)
    assert tale.mirror.complete
    assert tale.mirror.leave() == [], "it is not ours to end"


def test_request_that_is_unknown_is_over() -> None:
    tale = Tale("r1")
    tale.tick()
    rejected = Rejected("r1", "unknown-request", "there is no such request (any more)")
    [over] = tale.mirror.rejected(rejected, tale.now)
    assert over == Over("failed", "there is no such request (any more)", rejected=True)
    assert tale.mirror.complete


def test_request_that_is_forgotten_ends_its_logs() -> None:
    """Found by the simulator: followers waited for the rest of its logs for ever."""
    tale = Tale("r1")
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.do([*tale.mirror.rejected(Rejected("r1", "unknown-request", "?"), tale.now)])
    assert tale.closed is False
    assert tale.mirror.complete


def test_request_takes_log_names_from_the_broker() -> None:
    tale = Tale("r1")
    log = "build-step-zlib-misc.log"
    step = StepState(KEY, "running", name="zlib", kind="chunk", log=log, fence=1)
    actions = tale.mirror.update(Update("r1", 1, "building", (step,)), tale.now)
    assert actions == [Changed(None, step), OpenLog(KEY, 1, log)]


def test_request_keeps_the_name_of_a_forgotten_step() -> None:
    tale = Tale()
    tale.tick()
    tale.update(StepState(KEY, "ready", name="zlib", kind="chunk", log="zlib.log", expected=3.0))
    tale.mirror.rejected(Rejected("r1", "unknown-request", "?"), tale.now)
    waiting = StepState(KEY, "waiting", name="zlib", kind="chunk", log="zlib.log")
    assert tale.mirror.steps[KEY] == waiting


def test_request_step_that_is_built_once_more_has_a_new_log() -> None:
    """Its first result was damaged in the store."""
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    size = len(TEXT)
    tale.update(StepState(KEY, "done", fence=1, log_size=size, log_sha256=sha(TEXT)))
    assert tale.closed
    tale.update(StepState(KEY, "waiting"))
    tale.running(fence=2)
    assert tale.file == b""
    tale.hint(0, TEXT, fence=2)
    tale.done(fence=2)
    assert (tale.file, tale.closed) == (TEXT, True)


def test_request_reads_the_log_of_an_ended_step_at_once() -> None:
    """Nothing of it is published any more."""
    tale = Tale()
    tale.tick()
    tale.done()
    tale.tick()
    assert tale.asked() == [0]
    tale.piece(0, TEXT, size=len(TEXT), sha256=sha(TEXT))
    assert (tale.file, tale.closed, tale.follows) == (TEXT, True, [])
    assert tale.mirror.complete


def test_request_follows_the_log_of_an_ended_step() -> None:
    tale = Tale()
    tale.tick()
    tale.done()
    tale.tick()
    tale.piece(0, TEXT[:4], size=len(TEXT), sha256=sha(TEXT))
    assert (tale.follows, tale.asked()) == ([True], [0, 4])
    tale.hint(4, TEXT[4:])
    assert (tale.file, tale.closed) == (TEXT, True)
