"""Requests that are ordered, resolved, left alone, followed by others, cancelled, remembered."""

import msgspec
import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric import bounds
from fabric.scheduling import events
from fabric.scheduling.requests import KEPT
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import PROTOCOL, BuildOrder, Command

APP = "app: zlib\nzlib:"


def test_order_is_resolved_and_then_built() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.order()
    [opened, resolve, _] = stage.effects
    assert isinstance(opened, events.Opened)
    assert isinstance(opened.intent, BuildOrder)
    assert resolve == events.Resolve(opened.intent)
    assert stage.verdict() == "resolving"
    stage.now += 2.5
    assert stage.update().message == "its definitions are being resolved, for 2.5 s"
    stage.resolve(APP)
    stage.sync()
    assert stage.running() == {"w1": ["zlib"]}
    update = stage.update()
    assert (update.state, update.title, update.goals) == ("building", "an order", (key_of("app"),))
    stage.done("zlib", "app")
    assert stage.verdict() == "done"


def test_update_has_title_and_goals_once() -> None:
    stage = Stage()
    stage.order()
    assert stage.update().title == "an order"
    assert stage.update().goals == ()
    seen = stage.update().version
    stage.resolve(APP)
    first = stage.update(seen=seen)
    assert (first.title, first.goals) == ("an order", (key_of("app"),))
    later = stage.update(seen=first.version)
    assert (later.title, later.goals) == ("", ())


def test_order_that_comes_again_changes_nothing() -> None:
    stage = Stage()
    stage.order()
    stage.order()
    assert not any(isinstance(each, events.Resolve | events.Opened) for each in stage.effects)
    stage.resolve(APP)
    stage.order()
    assert stage.verdict() == "building"


def test_order_that_cannot_be_resolved_fails() -> None:
    stage = Stage()
    stage.order()
    stage.handle(events.Unresolved("r1", "systems/small.morph:3: unknown field 'chunk'"))
    assert stage.verdict() == "failed"
    assert stage.update().message == "systems/small.morph:3: unknown field 'chunk'"
    assert events.Closed("r1", "failed") in stage.effects
    assert events.Abandon("r1") not in stage.effects, "there is nothing to be abandoned"


def test_order_resolved_to_an_invalid_graph_fails() -> None:
    stage = Stage()
    stage.order()
    stage.resolve("a: b\nb: a")
    assert stage.verdict() == "failed"
    assert "in a circle" in stage.update().message


def test_order_of_cached_artifacts_is_done() -> None:
    stage = Stage(stored=["app"])
    stage.order()
    stage.resolve(APP)
    assert stage.verdict() == "done"
    assert stage.states() == {"app": "cached"}


def test_leave_abandons_resolving() -> None:
    stage = Stage()
    stage.order()
    stage.leave()
    assert events.Abandon("r1") in stage.effects
    stage.resolve(APP)
    assert stage.verdict() == "cancelled"
    assert not stage.scheduler.state.tasks


def test_patience_that_ends_abandons_resolving() -> None:
    stage = Stage()
    stage.order()
    stage.wait(20.0)
    assert not stage.scheduler.state.requests
    stage.handle(events.Unresolved("r1", "too late"))
    assert not stage.scheduler.state.requests


def test_detached_request_goes_on_when_nobody_polls() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.order(detach=True)
    stage.leave()
    stage.wait(60.0, alive=["w1"])
    stage.resolve(APP)
    stage.sync()
    stage.wait(60.0, alive=["w1"])
    stage.leave()
    stage.done("zlib", "app")
    stage.wait(60.0, alive=["w1"])
    stage.poll()
    assert stage.refusals == []
    assert stage.verdict() == "done"
    assert stage.states() == {"app": "done", "zlib": "done"}


def test_detached_order_may_come_after_its_own_leave() -> None:
    stage = Stage()
    stage.leave()
    stage.order(detach=True)
    assert stage.verdict() == "resolving"


def test_request_that_is_over_is_kept_for_later_queries() -> None:
    stage = building(APP, "w1")
    stage.ends("zlib", "failed", message="make: *** Error 1")
    stage.leave()
    stage.wait(100.0, alive=["w1"])
    stage.poll()
    assert stage.refusals == []
    assert stage.verdict() == "failed"
    assert stage.steps()["zlib"].message == "make: *** Error 1"


def test_requests_that_are_over_are_bounded() -> None:
    stage = Stage(stored=["app"])
    for number in range(KEPT + 5):
        stage.submit("app:", request=f"r{number}")
        stage.leave(f"r{number}")
    assert len(stage.scheduler.state.requests) == KEPT
    assert "r4" not in stage.scheduler.state.requests
    assert "r5" in stage.scheduler.state.requests


def test_cancel_ends_one_request_and_disturbs_no_other() -> None:
    stage = Stage()
    stage.worker("w1", "w2")
    stage.submit("app: zlib xz\nzlib:\nxz:", request="aaaa1")
    stage.submit("tool: zlib\nzlib:", request="bbbb2", detach=True)
    stage.sync()
    assert stage.all_running() == ["xz", "zlib"]
    answer = stage.command("cancel", "aaaa")
    assert answer.lines == ("a test: cancelled",)
    stage.sync()
    assert stage.all_running() == ["zlib"]
    assert stage.update("aaaa1").message == "cancelled on demand"
    assert stage.command("cancel", "aaaa1").lines == ("a test: it is cancelled already",)
    assert stage.command("cancel", "bbbb2").lines == ("a test: cancelled",)
    stage.sync()
    assert stage.running() == {}


def test_cancel_while_resolving() -> None:
    stage = Stage()
    stage.order()
    stage.command("cancel", "r1")
    assert events.Abandon("r1") in stage.effects


def test_cancel_needs_exactly_one_request() -> None:
    stage = Stage()
    stage.submit(APP, request="aaaa1")
    stage.submit(APP, request="aaaa2")
    assert stage.command("cancel", "cccc").error == "no request here is called cccc"
    assert stage.command("cancel", "aaaa").error == "several requests begin with aaaa"
    assert stage.command("cancel", "a").error == "no request here is called a"


# -- what cannot be written down ---------------------------------------------------------------


def test_request_that_is_not_journaled_is_forgotten() -> None:
    for detach in (True, False):
        stage = building(APP, "w1")
        stage.order("r2", detach=detach)
        stage.resolve(APP, request="r2")
        stage.handle(events.NotJournaled("r2"))
        assert events.Closed("r2", "cancelled") in stage.effects
        assert "r2" not in stage.scheduler.state.requests
        assert stage.running() == {"w1": ["zlib"]}, "another wants it"
        stage.order("r2", detach=detach)
        assert any(isinstance(each, events.Opened) for each in stage.effects), "it is new"


def test_request_that_is_not_journaled_abandons_resolving() -> None:
    stage = Stage()
    stage.order()
    stage.handle(events.NotJournaled("r1"))
    assert events.Abandon("r1") in stage.effects
    stage.handle(events.NotJournaled("r1"))
    assert stage.effects == []


def test_request_that_is_over_and_not_journaled_is_forgotten() -> None:
    for leave in (True, False):
        stage = Stage()
        stage.order()
        stage.handle(events.Unresolved("r1", "no such system"))
        if leave:
            stage.leave()
        stage.handle(events.NotJournaled("r1"))
        assert stage.effects == [events.Closed("r1", "failed")]
        assert not stage.scheduler.state.requests
        for n in range(KEPT + 5):  # it is not among those that are kept, either
            stage.order(f"n{n}")
            stage.handle(events.Unresolved(f"n{n}", "no such system"))
            stage.leave(f"n{n}")
        assert len(stage.scheduler.state.requests) == KEPT


# -- bounds --------------------------------------------------------------------------------------


@pytest.mark.bound("OPEN_REQUESTS")
@pytest.mark.bound("ALL_REQUESTS")
def test_open_requests_are_bounded_for_each_user_and_for_all() -> None:
    scheduler = Scheduler(now=0.0)
    refusals: list[events.Effect] = []

    def order(requester: str, number: int) -> None:
        order = BuildOrder(PROTOCOL, f"{requester} {number}", "t", "refs/x", "c" * 40, "s.morph")
        event = msgspec.structs.replace(order, requester=requester)
        for effect in scheduler.handle(event, 0.0):
            if isinstance(effect, events.Reject):
                refusals.append(effect)

    users = bounds.ALL_REQUESTS // bounds.OPEN_REQUESTS
    for user in range(users):
        for number in range(bounds.OPEN_REQUESTS):
            order(f"user{user}", number)
    assert not refusals
    order("user0", bounds.OPEN_REQUESTS)
    order("another", 1)
    more = "builds that are not over, as many as there may be; `fabric-initiator list` shows them"
    assert refusals == [
        events.Reject("user0 500", "not-now", f"user0 has 500 {more}"),
        events.Reject("another 1", "not-now", f"the controller has 5000 {more}"),
    ]
    scheduler.handle(Command(PROTOCOL, "c", "cancel", "user0 7"), 0.0)
    order("user0", bounds.OPEN_REQUESTS)
    assert "user0 500" in scheduler.state.requests


@pytest.mark.bound("OPEN_STEPS")
def test_open_steps_are_bounded_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "OPEN_STEPS", 5)
    text = "c:\nd:\ne:"
    stage = Stage()

    def ordered(request: str, requester: str, text: str) -> tuple[str, str]:
        stage.order(request, requester=requester)
        stage.resolve(text, "c", request=request)
        update = stage.update(request)
        return update.state, update.message

    six = "\n".join(f"{letter}:" for letter in "abcdef")
    assert ordered("r1", "ann", six)[0] == "building"  # alone it may be larger
    assert ordered("r2", "ann", text) == (
        "failed",
        "its 3 steps are too many beside the 6 of ann's builds that are not over; order it again"
        " when some are",
    )
    assert ordered("r3", "bob", text)[0] == "building"
    stage.leave("r1")
    assert ordered("r4", "ann", text)[0] == "building"


def test_polls_do_not_keep_requests_that_are_over() -> None:
    stage = Stage()
    for n in range(300):
        stage.order(f"r{n}", detach=True)
        stage.command("cancel", f"r{n}")
    for _ in range(20):
        stage.wait(1.0, polls=list(stage.scheduler.state.requests))
    assert len(stage.scheduler.state.requests) <= 200
    assert stage.verdict("r299") == "cancelled"
