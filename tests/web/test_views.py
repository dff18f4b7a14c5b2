"""What pages show, from the broker's answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from wire_kit import key_of

from fabric import bounds
from fabric.client.changes import Change
from fabric.jobs import Artifact, Blob, Content, Manifest
from fabric.web.asks import Heard, NotFound
from fabric.web.attempts import Try
from fabric.web.mirrors import Mirror, Mirrors
from fabric.web.pages import build, builds, farm, step, systems, worker
from fabric.web.pages.facts import part, request_row, system_of
from fabric.web.store import Built, Index, brief
from fabric.wire.messages import (
    STORING,
    AttemptInfo,
    GraphStep,
    RequestInfo,
    RequestState,
    StepState,
    Update,
    WorkerInfo,
)

NOW = datetime(2026, 11, 29, 20, 0, tzinfo=UTC)
ZLIB, CURL, APP = map(key_of, ("zlib", "curl", "app"))


def request(id: str = "r1", state: RequestState = "building", **more: object) -> RequestInfo:
    facts = {"title": "small for alice", "requester": "alice", "since": 60.0, **more}
    return RequestInfo(request=id, state=state, **facts)  # type: ignore[arg-type]


# -- lists ---------------------------------------------------------------------------------


def test_part_is_the_asked_page_or_the_last() -> None:
    rows = list(range(250))
    assert part(rows, 3, 100)[0] == rows[200:]
    shown, which = part(rows, 9, 100)
    assert (list(shown), which.page, which.pages, which.first, which.last, which.total) == (
        rows[200:], 3, 3, 201, 250, 250,
    )  # fmt: skip
    none: list[int] = []
    empty, which = part(none, 1)
    assert (list(empty), which.page, which.pages, which.first, which.last) == ([], 1, 1, 0, 0)


@pytest.mark.bound("WEB_ROWS")
def test_more_rows_than_the_bound_are_on_further_pages() -> None:
    found = [request(f"r{number}") for number in range(bounds.WEB_ROWS + 1)]
    first = builds.view(found, builds.BuildsQuery(), NOW)
    assert len(first.builds) == bounds.WEB_ROWS
    assert (first.part.pages, first.total) == (2, bounds.WEB_ROWS + 1)
    assert len(builds.view(found, builds.BuildsQuery(page=2), NOW).builds) == 1


def test_title_tells_the_system() -> None:
    assert system_of("base for all for alice") == "base for all"
    assert system_of("a test") == ""


# -- the farm ------------------------------------------------------------------------------


def test_farm_counts_slots_and_the_queue_of_each_requester() -> None:
    running = (
        StepState(ZLIB, "running", name="zlib", phase="build", running_for=12.4),
        StepState(CURL, "running", name="curl", phase=STORING),
    )
    workers = [
        WorkerInfo("w10", "x86_64", 2, since=90.0, heard=1.0, state="idle"),
        WorkerInfo("w2", "x86_64", 4, since=90.0, heard=1.0, running=running, state="busy"),
    ]
    requests = [
        request("r1", total=10, done=2, cached=3, failed=1, running=2, left=30.0),
        request("r2", total=4, running=1, left=50.0),
        request("r3", requester="bob", total=40),
        request("r4", "done", requester="carol", total=5, done=4, cached=1),
        request("r5", "done", total=5, done=5, since=90_000.0),
    ]
    hour = [attempt(result="done"), attempt(result="failed"), attempt(result="done")]
    view = farm.view(workers, requests, hour, farm.FarmQuery(), NOW, "the disk is full")
    assert (view.built_hour, view.failed_hour) == (2, 1)
    assert (view.slots, view.used, view.building, view.running, view.waiting) == (6, 1, 3, 3, 45)
    assert (view.built_today, view.cached_today) == (6, 4)
    assert [(row.requester, row.builds, row.running, row.waiting, row.left) for row in view.queue] \
        == [("bob", 1, 0, 40, 0.0), ("alice", 2, 3, 5, 50.0)]  # fmt: skip
    assert [row.name for row in view.workers] == ["w2", "w10"]
    assert view.workers[0].running[0].began == NOW - timedelta(seconds=13)
    assert [(one.state, one.count) for one in view.states] == [("busy", 1), ("idle", 1)]
    assert view.warning == "the disk is full"
    idle = farm.view(workers, [], [], farm.FarmQuery(state="idle"), NOW)
    assert [row.name for row in idle.workers] == ["w10"]
    assert sum(one.count for one in idle.states) == 2


# -- builds --------------------------------------------------------------------------------


def test_builds_are_filtered_by_user_system_and_state() -> None:
    requests = [
        request("old", "done", since=100.0),
        request("new", "failed", since=10.0, requester="bob", title="Base for bob"),
        request("live", "building", since=500.0),
    ]

    def found(**query: object) -> list[str]:
        asked = builds.BuildsQuery(**query)  # type: ignore[arg-type]
        return [row.id for row in builds.view(requests, asked, NOW).builds]

    assert found() == ["live", "new", "old"]
    assert found(user="bob") == ["new"]
    assert found(system="BASE") == ["new"]
    assert found(state="live") == ["live"]
    assert found(state="done") == ["old"]
    view = builds.view(requests, builds.BuildsQuery(user="alice", state="done"), NOW)
    assert [(one.state, one.count) for one in view.states] == [("building", 1), ("done", 1)]
    assert view.users == ("alice", "bob")


def test_build_that_is_over_waits_for_nothing() -> None:
    assert request_row(request(state="failed", total=10, done=2, failed=1), NOW).waiting == 0
    assert request_row(request(total=10, done=2, failed=1, running=3), NOW).waiting == 4


def update(version: int, *steps: StepState, goals: tuple[str, ...] = (), **more: str) -> Update:
    return Update("r1", version, "building", steps, goals=goals, **more)  # type: ignore[arg-type]


def test_build_lists_what_needs_attention_first() -> None:
    steps = [
        StepState(ZLIB, "done", name="zlib"),
        StepState(CURL, "failed", name="curl"),
        StepState(APP, "waiting", name="app"),
    ]
    mirror = Mirror(update(4, *steps, goals=(APP,), title="small for alice"), NOW)
    view = build.view(request(), mirror, build.BuildQuery(), NOW)
    assert [row.name for row in view.steps] == ["curl", "app", "zlib"]
    assert [goal.name for goal in view.goals] == ["app"]
    only = build.view(request(), mirror, build.BuildQuery(state="done"), NOW)
    assert [row.name for row in only.steps] == ["zlib"]
    named = build.view(request(), mirror, build.BuildQuery(name="CU"), NOW)
    assert [row.name for row in named.steps] == ["curl"]
    assert sum(one.count for one in named.states) == 3


class Broker:
    """Answers with what the test says, and notes what it is asked."""

    error = ""

    def __init__(self, *answers: Heard) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, int]] = []

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:
        self.asked.append((what, about, seen))
        return self.answers.pop(0)


def test_mirror_asks_for_changes_only() -> None:
    running = StepState(ZLIB, "running", name="zlib", running_for=5.0)
    broker = Broker(
        Heard("1", update=update(4, running, goals=(APP,), title="small for alice")),
        Heard("2", update=update(5, StepState(CURL, "ready", name="curl"))),
    )

    async def test() -> None:
        mirrors = Mirrors(broker)
        first = await mirrors.get("r1")
        began = first.steps[ZLIB].began
        assert list((await mirrors.get("r1")).steps) == [ZLIB, CURL]
        assert first.steps[ZLIB].began == began, "it runs since then, whenever one asks"
        assert first.title == "small for alice"

    asyncio.run(test())
    assert broker.asked == [("update", "r1", 0), ("update", "r1", 4)]


def test_mirror_begins_anew_with_another_run_of_the_broker() -> None:
    waiting = StepState(CURL, "waiting", name="curl")
    broker = Broker(
        Heard("1", update=update(9, StepState(ZLIB, "done", name="zlib"), goals=(APP,))),
        Heard("2", update=update(2)),
        Heard("3", update=update(2, waiting, goals=(APP,))),
        Heard("4"),
    )

    async def test() -> None:
        mirrors = Mirrors(broker)
        await mirrors.get("r1")
        assert list((await mirrors.get("r1")).steps) == [CURL]
        with pytest.raises(NotFound, match="r1: no such build"):
            await mirrors.get("r1")

    asyncio.run(test())
    assert broker.asked[1:] == [("update", "r1", 9), ("update", "r1", 0), ("update", "r1", 2)]


def test_mirror_forgets_the_steps_that_a_whole_update_lacks() -> None:
    """A broker that restores a request may resolve it to other steps."""
    mirror = Mirror(update(4, StepState(ZLIB, "done"), goals=(APP,)), NOW)
    mirror.apply(update(7, StepState(CURL, "ready"), goals=(APP,)), NOW)
    assert list(mirror.steps) == [CURL]


@pytest.mark.bound("WEB_STEPS")
def test_builds_looked_at_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_STEPS", 3)
    two = (StepState(ZLIB, "done"), StepState(CURL, "done"))
    broker = Broker(*(Heard("", update=update(4, *two, goals=(APP,))) for _ in range(3)))

    async def test() -> None:
        mirrors = Mirrors(broker)
        for id in ("r1", "r2", "r1"):
            await mirrors.get(id)

    asyncio.run(test())
    assert [seen for _, _, seen in broker.asked] == [0, 0, 0], "all of r1 is asked for again"


# -- steps ---------------------------------------------------------------------------------


def attempt(**more: object) -> AttemptInfo:
    facts = {
        "key": CURL, "fence": 1, "name": "curl", "kind": "chunk", "worker": "w1", "ago": 100.0,
        "seconds": 40.0, **more,
    }  # fmt: skip
    return AttemptInfo(**facts)  # type: ignore[arg-type]


def tried(**more: object) -> Try:
    return Try(-100.0, -60.0, attempt(**more))


def test_step_has_neighbors_attempts_and_phases() -> None:
    steps = [
        StepState(ZLIB, "done", name="zlib", kind="chunk"),
        StepState(CURL, "failed", name="curl", kind="chunk", fence=2),
    ]
    mirror = Mirror(update(4, *steps, goals=(APP,), title="small for alice"), NOW)
    graph = (
        GraphStep(APP, "app", "system", (1,)),
        GraphStep(CURL, "curl", "chunk", (2,)),
        GraphStep(ZLIB, "zlib", "chunk"),
    )
    phases = (("fetch", 0.0), ("build", 3.0), ("strip", 39.0))
    attempts = [tried(result="lost"), tried(fence=2, result="failed", phases=phases)]
    facts = step.Facts(key=CURL, mirror=mirror, graph=graph, attempts=attempts)
    view = step.view(facts, NOW)
    assert (view.name, view.kind, view.state, view.build) == ("curl", "chunk", "failed", "r1")
    assert [(one.name, one.state) for one in view.needs] == [("zlib", "done")]
    assert [(one.name, one.state) for one in view.needed_by] == [("app", "")]
    assert [row.fence for row in view.attempts] == ["2", "1"]
    assert [(one.name, one.seconds) for one in view.attempts[0].phases] == [
        ("fetch", 3.0), ("build", 36.0), ("strip", 1.0),
    ]  # fmt: skip
    assert view.attempts[0].began == NOW - timedelta(seconds=100)


def manifest(key: str, **more: object) -> Manifest:
    facts = {"kind": "chunk", "name": "curl", "arch": "x86_64", "artifacts": (), **more}
    return Manifest(key=key, **facts)  # type: ignore[arg-type]


def test_step_in_the_store_has_artifacts_and_reasons() -> None:
    artifacts = (
        Artifact("curl-bins", Blob.of(b"x" * 10)),
        Artifact("curl-doc"),
        Artifact("curl-runtime", None, (Content(ZLIB, "zlib-bins"),)),
    )
    facts = step.Facts(
        key=CURL,
        manifest=manifest(CURL, artifacts=artifacts, built=1e9, inputs={"prefix": "/usr"}),
        parts={ZLIB: "zlib"},
        former=brief(manifest(APP)),
        changes=(Change("zlib", ZLIB, "ref", "source 1 -> 2"),),
    )
    view = step.view(facts, NOW)
    record = view.record
    assert record is not None
    assert (view.state, record.size, record.former) == ("done", 10, APP)
    assert record.built == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert [(one.name, one.size, one.parts, one.empty) for one in record.artifacts] == [
        ("curl-bins", 10, 0, False), ("curl-doc", 0, 0, True), ("curl-runtime", 0, 1, False),
    ]  # fmt: skip
    assert [(one.step, one.text) for one in record.reasons] == [("zlib", "source 1 -> 2")]
    assert [one.name for one in view.needs] == ["zlib"]


@pytest.mark.bound("WEB_ROWS")
def test_page_of_a_step_has_no_more_rows_than_the_bound() -> None:
    count = bounds.WEB_ROWS + 1
    others = tuple(GraphStep(key_of(f"n{one}"), f"n{one}", "chunk") for one in range(count))
    above = tuple(GraphStep(key_of(f"a{one}"), f"a{one}", "chunk", (0,)) for one in range(count))
    graph = (GraphStep(CURL, "curl", "chunk", tuple(range(1, count + 1))), *others, *above)
    attempts = [tried(fence=fence, result="lost") for fence in range(count)]
    view = step.view(step.Facts(key=CURL, graph=graph, attempts=attempts), NOW)
    assert {len(view.needs), len(view.needed_by), len(view.attempts)} == {bounds.WEB_ROWS}
    assert {view.needs_total, view.needed_by_total, view.attempts_total} == {count}


@pytest.mark.bound("WEB_ROWS")
@pytest.mark.parametrize("stored", [True, False])
def test_page_of_a_system_has_no_more_artifacts_of_a_chunk_than_the_bound(stored: bool) -> None:
    contents = tuple(Content(ZLIB, f"zlib-{one}") for one in range(bounds.WEB_ROWS + 1))
    rootfs = Artifact("a-rootfs", Blob.of(b"abc"), contents)
    one = manifest(APP, kind="system", name="a", artifacts=(rootfs,), built=10.0)
    known = index(*map(brief, (one, manifest(ZLIB, name="zlib")) if stored else (one,)))
    [row] = systems.system_view(brief(one), one, known, systems.SystemQuery()).chunks
    assert row.name == ("zlib" if stored else ZLIB[:12])
    assert len(row.artifacts) == bounds.WEB_ROWS


def test_step_that_runs_outside_a_build_is_running() -> None:
    view = step.view(step.Facts(key=CURL, attempts=[tried()]), NOW)
    assert (view.state, view.attempts[0].result) == ("running", "running")


def test_unknown_step_is_not_found() -> None:
    with pytest.raises(NotFound, match="neither the broker nor the store"):
        step.view(step.Facts(key=CURL), NOW)


# -- workers and systems -------------------------------------------------------------------


def test_worker_page_counts_results() -> None:
    attempts = [tried(result="done"), tried(fence=2, result="fault"), tried(fence=3)]
    info = WorkerInfo("w1", "x86_64", 2, since=90.0, heard=1.0, features=("gpu",))
    view = worker.view("w1", [info], attempts, worker.WorkerQuery(), NOW, NOW)
    assert [row.fence for row in view.attempts] == ["3", "2", "1"]
    assert [(one.state, one.count) for one in view.results] == [
        ("running", 1), ("done", 1), ("fault", 1),
    ]  # fmt: skip
    faults = worker.view("w1", [info], attempts, worker.WorkerQuery(state="fault"), NOW, NOW)
    assert [row.fence for row in faults.attempts] == ["2"]
    gone = worker.view("w1", [], attempts, worker.WorkerQuery(), NOW, NOW)
    assert gone.worker is None
    with pytest.raises(NotFound, match="the broker knows no such worker"):
        worker.view("w1", [], [], worker.WorkerQuery(), NOW, NOW)


def index(*built: Built) -> Index:
    found = Index(lambda: pytest.fail("the store is not read"))
    for one in built:
        found._add(one)
    return found


def test_systems_have_their_last_good_build_and_contents() -> None:
    rootfs = Artifact("a-rootfs", Blob.of(b"abc"), (Content(ZLIB, "zlib-bins"),))
    old = manifest(key_of("1"), kind="system", name="a", artifacts=(rootfs,), built=10.0)
    new = manifest(key_of("2"), kind="system", name="a", artifacts=(rootfs,), built=20.0)
    again = manifest(key_of("3"), kind="system", name="a", built=30.0, rebuild_of=new.key)
    zlib = manifest(ZLIB, name="zlib", metadata={"repo": "upstream:zlib", "ref": "v1.3"})
    known = index(*map(brief, (old, again, new, zlib)))
    view = systems.systems_view(known, systems.SystemsQuery())
    assert [(row.name, row.key) for row in view.systems] == [("a", new.key)]
    assert systems.systems_view(known, systems.SystemsQuery(name="b")).systems == ()

    def found(query: systems.SystemQuery) -> Built:
        return systems.find(known.of_kind("system"), "a", query)

    assert found(systems.SystemQuery()).key == new.key
    assert found(systems.SystemQuery(key=old.key)).key == old.key
    with pytest.raises(NotFound, match="no such system"):
        found(systems.SystemQuery(arch="arm"))
    one = systems.system_view(brief(new), new, known, systems.SystemQuery())
    assert [(row.name, row.ref) for row in one.chunks] == [("zlib", "v1.3")]
    assert [row.key for row in one.builds] == [again.key, new.key, old.key]
