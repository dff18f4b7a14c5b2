"""The timeline of a build: lanes, waiting, the critical path, and drawings of many attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures_kit import ID, Build, Told, build_system, gnome

from fabric import bounds
from fabric.trove.artifacts.store import Store
from fabric.web import lanes
from fabric.web.asks import Heard
from fabric.web.attempts import Attempts, Known
from fabric.web.drawing import prepare
from fabric.web.graph import rows
from fabric.web.graphs import Graph, Graphs
from fabric.web.lanes import JITTER, Load, Span, Wait
from fabric.web.log_copies import LogCopies
from fabric.web.mirrors import KnownStep, Mirrors
from fabric.web.paced import KEPT, TIMES, Paced
from fabric.web.page import Web
from fabric.web.store import StoreReader
from fabric.web.timeline import TimelineQuery, make, view
from fabric.web.timeline_view import Bar, TimelineView
from fabric.wire.messages import AttemptInfo, RequestInfo

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def span(
    step: int,
    began: float,
    ended: float,
    result: str = "done",
    worker: str = "w",
    store: float | None = None,
) -> Span:
    phases = (("build", 0.0), *([("store", store)] if store is not None else []))
    return Span(step, began, ended, result, worker, phases)


def began(spans: Sequence[Span]) -> float:
    return min(one.began for one in spans)


# -- lanes ---------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(1, 20)), max_size=30)
)
def test_attempts_of_a_slot_do_not_overlap_and_slots_are_as_few_as_can_be(
    tries: list[tuple[str, int, int]],
) -> None:
    spans = [span(0, began, began + length, worker=worker) for worker, began, length in tries]
    found = lanes.slots(spans)
    assert [worker for worker, _ in found] == [one.worker for one in spans]
    by_slot: dict[tuple[str, int], list[Span]] = {}
    for one, slot in zip(spans, found, strict=True):
        by_slot.setdefault(slot, []).append(one)
    for its in by_slot.values():
        its.sort(key=lambda one: one.began)
        assert all(before.ended <= after.began for before, after in pairwise(its))
    for worker in {one.worker for one in spans}:
        at_once = max(
            sum(one.worker == worker and one.began <= at.began < one.ended for one in spans)
            for at in spans
            if at.worker == worker
        )
        assert {slot for its, slot in found if its == worker} == set(range(at_once))


def test_an_attempt_takes_the_lowest_slot_that_is_free() -> None:
    spans = [span(0, 0, 5), span(1, 0, 3), span(2, 0, 9), span(3, 6, 7)]
    assert [slot for _, slot in lanes.slots(spans)] == [0, 1, 2, 0]


def test_an_attempt_that_stores_its_result_leaves_its_slot_to_another() -> None:
    spans = [span(0, 0, 10, store=8.0), span(1, 8, 20), span(2, 9, 12)]
    assert lanes.slots(spans) == [("w", 0), ("w", 0), ("w", 1)]


# -- waiting and the critical path -----------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Span], list[list[int]]]:
    """Attempts at steps, each after one that built what it needs; some were tried before."""
    count = draw(st.integers(1, 6))
    needs: list[list[int]] = []
    spans: list[Span] = []
    done: list[float] = []
    for step in range(count):
        needs.append(sorted(draw(st.sets(st.integers(0, step - 1), max_size=3))) if step else [])
        at = float(max((done[one] for one in needs[step]), default=0))
        for result in (*draw(st.lists(st.sampled_from(["lost", "refused"]), max_size=1)), "done"):
            began = at + draw(st.integers(0, 3))
            at = began + draw(st.integers(1, 9))
            spans.append(span(step, began, at, result))
        done.append(at)
    return draw(st.permutations(spans)), needs


def chains(spans: Sequence[Span], needs: Sequence[Sequence[int]], last: int) -> list[list[int]]:
    """All chains of attempts to the last, each of which the next one waited for."""
    found = [[last]]
    after = spans[last]
    for place, before in enumerate(spans):
        again = before.step == after.step and before.began < after.began
        built = before.step in needs[after.step] and before.result == "done"
        if (again or built) and before.ended <= after.began:
            found += [[*chain, last] for chain in chains(spans, needs, place)]
    return found


@given(schedules())
def test_critical_path_is_the_chain_with_the_latest_ends(
    schedule: tuple[list[Span], list[list[int]]],
) -> None:
    spans, needs = schedule
    waiting = lanes.waits(spans, needs, began(spans))
    path = lanes.critical(spans, waiting)
    last = max(range(len(spans)), key=lambda one: (spans[one].ended, one))
    best = max(
        chains(spans, needs, last),
        key=lambda chain: [(spans[one].ended, one) for one in chain[::-1]],
    )
    assert path == best
    # All time until the end is an attempt's on the path, or somebody's waiting on it.
    start = min(one.began for one in spans)
    whole = sum(spans[one].ended - spans[one].began + waiting[one].seconds for one in path)
    assert whole == pytest.approx(spans[last].ended - start)


@given(schedules())
def test_without_waiting_the_critical_path_is_the_longest(
    schedule: tuple[list[Span], list[list[int]]],
) -> None:
    _, needs = schedule
    spans: list[Span] = []
    for step, its in enumerate(needs):
        at = max((spans[one].ended for one in its), default=0.0)
        spans.append(span(step, at, at + 1 + step % 3))
    waiting = lanes.waits(spans, needs, began(spans))
    assert all(wait.seconds == 0 for wait in waiting)
    path = lanes.critical(spans, waiting)

    def longest(step: int) -> float:
        before = max(map(longest, needs[step]), default=0.0)
        return before + spans[step].ended - spans[step].began

    assert sum(spans[one].ended - spans[one].began for one in path) == max(
        map(longest, range(len(spans)))
    )


def test_wait_counts_from_the_last_thing_that_was_needed() -> None:
    needs = [[], [], [0, 1]]
    spans = [span(0, 0, 5), span(1, 0, 8), span(2, 12, 15)]
    assert lanes.waits(spans, needs, began(spans)) == [Wait(0, -1), Wait(0, -1), Wait(4, 1)]


def test_wait_after_a_lost_attempt_counts_from_its_end() -> None:
    spans = [span(0, 0, 5), span(1, 5, 9, "lost", "a"), span(1, 11, 15, "done", "b")]
    assert lanes.waits(spans, [[], [0]], began(spans)) == [Wait(0, -1), Wait(0, 0), Wait(2, 1)]


def test_wait_without_a_known_beginning_is_none() -> None:
    assert lanes.waits([span(0, 3, 5)], [[]], 1.0) == [Wait(2, -1)]
    assert lanes.waits([span(0, 3, 5)], [[]], None) == [Wait(0, -1)]


def test_a_failed_attempt_gives_nothing_to_others() -> None:
    spans = [span(0, 0, 5), span(0, 5, 6, "failed"), span(1, 7, 9)]
    assert lanes.waits(spans, [[], [0]], began(spans))[2] == Wait(2, 0)


def test_of_attempts_that_run_the_path_takes_a_likely_one() -> None:
    spans = [span(0, 0, 9, ""), span(1, 0, 9, "")]
    waiting = lanes.waits(spans, [[], []], began(spans))
    assert lanes.critical(spans, waiting, {0}) == [0]
    assert lanes.critical(spans, waiting, {1}) == [1]


def test_quick_attempts_at_one_step_do_not_wait_for_each_other_in_a_circle() -> None:
    spans = [span(0, 0.0, 0.1, "refused"), span(0, 0.2, 0.3)]
    assert JITTER > 0.3
    assert [wait.after for wait in lanes.waits(spans, [[]], began(spans))] == [-1, 0]
    assert lanes.critical(spans, lanes.waits(spans, [[]], began(spans))) == [0, 1]


# -- load ----------------------------------------------------------------------------------


def test_load_counts_slots_and_steps_that_wait() -> None:
    spans = [span(0, 0, 4), span(1, 6, 9), span(2, 4, 9, "", store=3.0)]
    waiting = [Wait(0, -1), Wait(2, 0), Wait(0, 0)]
    assert lanes.load(spans, waiting, ready=[8]) == [
        Load(0, 1, 0), Load(4, 1, 1), Load(6, 2, 0), Load(7, 1, 0), Load(8, 1, 1), Load(9, 0, 1),
    ]  # fmt: skip


def test_shares_tell_waiting_from_nothing_ready() -> None:
    loads = [Load(0, 2, 1), Load(3, 1, 0), Load(5, 0, 0)]
    assert lanes.shares(loads, 2, 6) == (8, 3, 3)
    assert lanes.shares(loads, 1, 6) == (8, 3, 1)


# -- many attempts -------------------------------------------------------------------------


def test_short_neighbours_are_drawn_as_one() -> None:
    spans = [span(0, 0, 1), span(1, 1, 2), span(2, 2, 30), span(3, 30, 31), span(4, 31, 32)]
    found = lanes.grouped(range(5), spans, 3.0, lambda place: place == 4)
    assert [group.members for group in found] == [[0, 1], [2], [3], [4]]
    assert (found[0].began, found[0].ended) == (0, 2)


def test_a_group_ends_where_it_would_be_long() -> None:
    spans = [span(one, one, one + 1) for one in range(100)]
    found = lanes.grouped(range(100), spans, 2.0, lambda _: False)
    assert all(group.ended - group.began < lanes.GROUP * 2.0 for group in found)
    assert sum(len(group.members) for group in found) == 100


def test_many_changes_of_load_become_few_that_keep_the_peaks() -> None:
    loads = [Load(at, 1 + (at == 777), 0) for at in range(1000)]
    found = lanes.thinned(loads, 50)
    assert len(found) <= 50
    assert max(one.used for one in found) == 2
    assert lanes.thinned(loads[:50], 50) == loads[:50]


@given(st.floats(0.01, 1e8))
def test_scale_is_round_and_little_longer(seconds: float) -> None:
    found = lanes.scale(seconds)
    assert found == 1 or seconds <= found <= seconds * 1.34
    assert float(f"{found:.3g}") == found


def info_of(number: int, began: float, ended: float, now: float, **more: object) -> AttemptInfo:
    return AttemptInfo(
        key=f"{number:064x}", fence=number, name=f"step{number}", kind="chunk", worker="w0",
        ago=now - began, seconds=ended - began, number=number, result="done", **more,  # type: ignore[arg-type]
    )  # fmt: skip


class Many:
    """A broker with so many attempts."""

    error = ""

    def __init__(self, count: int) -> None:
        self.attempts = [info_of(number, number, number + 1, 1e6) for number in range(1, count + 1)]
        self.questions = 0

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:
        assert (what, len(about)) == ("attempts", 1)
        self.questions += 1
        found = self.attempts[seen : seen + bounds.ATTEMPTS_SHOWN]
        return Heard("", attempts=tuple(found))


def test_attempts_are_asked_for_once() -> None:
    async def test() -> None:
        farm = Many(2500)
        attempts = Attempts(farm)
        known = await attempts.get("x", 0.0)
        assert [one.info.number for one in known.ended] == list(range(1, 2501))
        assert farm.questions == 3
        farm.attempts.append(info_of(2501, 2501, 2502, 1e6))
        assert len((await attempts.get("x", 0.0)).ended) == 2501
        assert farm.questions == 4

    asyncio.run(test())


@pytest.mark.bound("WEB_ATTEMPTS")
def test_attempts_past_the_bound_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "WEB_ATTEMPTS", 1500)

    async def test() -> None:
        farm = Many(2000)
        attempts = Attempts(farm)
        known = await attempts.get("x", 0.0)
        assert [one.info.number for one in known.ended] == list(range(501, 2001))
        await attempts.get("y", 0.0)
        assert farm.questions == 6
        await attempts.get("y", 0.0)
        assert farm.questions == 7
        await attempts.get("x", 0.0)  # it was forgotten
        assert farm.questions == 10

    asyncio.run(test())


def test_an_attempt_that_began_with_the_build_is_not_before_it() -> None:
    async def test() -> None:
        farm = Many(3)
        late = (await Attempts(farm, lambda: 0.0).get("x", -1e6 + 1.5)).base
        assert late == pytest.approx(-1e6 + 1, abs=0.2)
        long_after = (await Attempts(farm, lambda: 0.0).get("x", -1e6 + 30)).base
        assert long_after == pytest.approx(-1e6 + 30, abs=0.2)

    asyncio.run(test())


def test_beginning_of_an_attempt_does_not_vary_with_the_time_of_answers() -> None:
    known = Known()
    running = msgspec.structs.replace(info_of(7, 10, 20, 20), number=0, result="")
    known.add((running,), 20.0)
    known.add((msgspec.structs.replace(running, ago=11.0, seconds=11.0),), 21.3)
    assert known.running[0].began == 10.0
    known.add((info_of(7, 10, 22, 30),), 30.4)
    assert known.ended[0].began == 10.0
    assert known.running == []


# -- the page ------------------------------------------------------------------------------


def page(build: Build, query: TimelineQuery | None = None) -> TimelineView:
    steps = tuple(build.steps)
    graph = Graph(steps, prepare(steps))
    states = rows(steps, {state.key: KnownStep(state, NOW) for state in build.states.values()})
    known = Known()
    known.add(tuple(build.attempts), 5000.0)
    return view(build.info, graph, states, known, 5000.0, NOW, query or TimelineQuery())


def build_bars(found: TimelineView) -> list[Bar]:
    return [bar for lane in found.lanes for bar in lane.bars]


def test_page_has_each_attempt_on_a_lane_of_its_worker() -> None:
    build = Build(gnome(), after=1500.0, failing=[300], lost=[20, 30])
    found = page(build)
    assert [(lane.worker, lane.number) for lane in found.lanes] == [
        (f"worker{worker}", slot) for worker in range(4) for slot in range(1, 5)
    ]
    bars = [bar for lane in found.lanes for bar in lane.bars]
    assert len(bars) == len(build.attempts)
    assert {bar.worker for bar in found.lanes[0].bars} == {"worker0"}
    assert sum(count.count for count in found.counts) == len(build.attempts)
    assert [bar.result for bar in found.unsuccessful] == ["lost", "lost"]
    assert found.now < found.now + build.info.left <= found.end
    assert found.critical[-1].result == "running"
    whole = found.critical_seconds + found.critical_waited
    assert whole == pytest.approx(1500, abs=JITTER * len(found.critical))
    assert msgspec.json.decode(msgspec.json.encode(found))["slots"] == 16


def test_words_of_a_bar_say_all_that_its_looks_say() -> None:
    build = Build(gnome(), after=1500.0, lost=[20])
    bars = {(bar.name, bar.result): bar for lane in page(build).lanes for bar in lane.bars}
    name = gnome()[20].name
    words = bars[name, "lost"].words.split("\n")
    assert words[0].startswith(f"{name}: lost after ")
    assert words[2] == "its worker is lost"
    critical = next(bar for bar in bars.values() if bar.critical and bar.waited > 1)
    words = critical.words.split("\n")
    assert words[0].startswith(f"{critical.name}: done in ")
    assert words[1] == f"on {critical.worker}"
    assert words[2].startswith("fetch ")
    assert words[3].startswith("waited ")
    assert words[3].endswith(f" for a worker, {critical.waited_after}")
    assert words[4] == "on the critical path"


def test_wait_after_a_lost_attempt_is_told() -> None:
    step = build_system()[0]
    first = info_of(1, 0, 5, 60, phases=(("fetch", 0.0),))
    first = msgspec.structs.replace(first, key=step.key, result="lost")
    second = msgspec.structs.replace(first, fence=2, number=2, ago=40.0, result="done")
    known = Known()
    known.add((first, second), 60.0)
    graph = Graph(build_system(), prepare(build_system()))
    info = RequestInfo("x" * 32, "small for alice", "alice", "done", since=62)
    found = view(info, graph, rows(graph.steps, {}), known, 60.0, NOW, TimelineQuery())
    assert [bar.waited_after for bar in found.critical] == [
        "",
        "since its attempt on w0 was lost",
    ]
    assert found.critical_waited == 15.0


def test_page_of_a_build_that_is_over_ends_with_it() -> None:
    build = Build(build_system(), after=1e6)
    found = page(build)
    assert found.over
    assert found.end == found.now
    last = max(bar.began + bar.seconds for bar in found.critical)
    assert found.now == pytest.approx(last, abs=0.02)
    assert found.recent == [] or all(bar.result != "running" for _, bar in found.recent)


def test_bars_stay_where_they_are_while_a_build_goes_on() -> None:
    early, late = page(Build(gnome(), after=1500.0)), page(Build(gnome(), after=1502.0))
    assert early.layout == late.layout
    bars = [{bar.id: bar for lane in its.lanes for bar in lane.bars} for its in (early, late)]
    for id, bar in bars[0].items():
        if bar.result == "done":
            assert early.x(bar.began) == pytest.approx(late.x(bars[1][id].began), abs=0.001)


def test_part_of_the_time_can_be_drawn() -> None:
    build = Build(gnome(), after=1500.0)
    found = page(build, TimelineQuery(begin=100.0, end=200.0))
    assert (found.begin, found.end) == (100.0, 200.0)
    for lane in found.lanes:
        assert all(bar.began <= 200 and bar.began + bar.seconds >= 100 for bar in lane.bars)
    assert (found.x(50), found.x(150), found.x(500)) == (0, 50, 100)


def test_page_of_a_build_whose_graph_is_forgotten_has_lanes() -> None:
    build = Build(build_system(), after=1e6)
    known = Known()
    known.add(tuple(build.attempts), 5000.0)
    found = view(build.info, Graph((), prepare(())), (), known, 5000.0, NOW, TimelineQuery())
    assert sum(len(lane.bars) for lane in found.lanes) == len(build.attempts)
    assert len(found.critical) == 1


def test_page_counts_steps_whose_attempts_are_forgotten() -> None:
    build = Build(gnome(), after=1500.0)
    ended = [attempt for attempt in build.attempts if attempt.number]
    assert page(build).forgotten == 0
    build.attempts = [attempt for attempt in build.attempts if attempt not in ended[:20]]
    found = page(build)
    assert found.forgotten == 20
    assert found.begin == pytest.approx(min(one.began for one in build_bars(found)), abs=0.01)
    assert all(bar.waited_after != "since the build began" for bar in build_bars(found))


def test_page_without_attempts_has_no_lanes() -> None:
    build = Build(build_system(), after=-1.0)
    found = page(build)
    assert (found.lanes, found.critical, found.slots) == ((), (), 0)
    assert found.curve("used") == "M0 100H1000V100Z"


def many(count: int, workers: int = 4) -> TimelineView:
    """The page of a build of so many short attempts."""
    known = Known()
    infos = [
        msgspec.structs.replace(
            info_of(n, n / workers, n / workers + 0.9, count), worker=f"w{n % workers}"
        )
        for n in range(1, count + 1)
    ]
    known.add(tuple(infos), float(count))
    info = RequestInfo("x" * 32, "many for alice", "alice", "done", since=count)
    return view(info, Graph((), prepare(())), (), known, float(count), NOW, TimelineQuery())


@pytest.mark.bound("WEB_BARS")
def test_too_many_bars_are_drawn_together_and_the_page_says_so() -> None:
    found = many(20_000)
    bars = [bar for lane in found.lanes for bar in lane.bars]
    assert len(bars) <= bounds.WEB_BARS
    assert sum(bar.count for bar in bars) == 20_000
    assert len(bars) > bounds.WEB_BARS / 2
    assert found.brief > 0
    group = next(bar for bar in bars if bar.count > 1)
    assert group.words.startswith(f"{group.count:,} attempts, from {group.name} on")
    assert many(2000).brief == 0


@pytest.mark.bound("WEB_LANES")
def test_slots_past_the_bound_are_left_out_and_the_page_says_so() -> None:
    found = many(1000, workers=300)
    assert len(found.lanes) == bounds.WEB_LANES
    assert found.lanes_left_out == 300 - bounds.WEB_LANES


def test_a_costly_view_is_made_less_often() -> None:
    async def test() -> None:
        clock = 100.0
        paced = Paced(lambda: clock, lambda: clock)

        def make() -> float:
            nonlocal clock
            clock += 0.5
            return clock

        assert await paced.get("x", make) == 100.5
        clock += TIMES * 0.5 - 0.1
        assert await paced.get("x", make) == 100.5
        assert await paced.get("y", make) == clock
        clock += 0.2
        assert await paced.get("x", make) == clock

    asyncio.run(test())


def test_views_that_were_asked_for_long_ago_are_not_kept() -> None:
    async def test() -> None:
        paced = Paced(lambda: 1.0, lambda: 1.0)
        for number in range(3 * KEPT):
            await paced.get(number, str)
        assert list(paced._made._values) == list(range(2 * KEPT, 3 * KEPT))

    asyncio.run(test())


def test_page_is_made_of_the_answers_of_a_broker() -> None:
    told = Told(Build(gnome(), after=1500.0))
    known = asyncio.run(Attempts(told).get("x", 0.0))
    assert len(known.ended) + len(known.running) == len(told.build.attempts)


class Reused(Told):
    """Tells the builds as they were 5 seconds ago."""

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:
        answer = await super().query(what, about, seen)
        if what != "requests":
            return answer
        info = msgspec.structs.replace(self.build.info, since=self.build.info.since - 5.0)
        heard = time.monotonic() - 5.0
        return Heard("", requests=(info,), asked=heard - 0.5, heard=heard)


def test_build_does_not_begin_later_because_an_answer_is_used_again(tmp_path: Path) -> None:
    reader = StoreReader(lambda: Store(str(tmp_path / "store"), tmp_path / "scratch"))

    async def made(farm: Told) -> TimelineView:
        logs = LogCopies(cast("Any", farm), reader, tmp_path)
        web = Web(farm, Mirrors(farm), Graphs(farm), Attempts(farm), reader, logs)
        return await make(web, {"id": ID}, TimelineQuery())

    build = Build(build_system(), after=1500.0)
    fresh, old = asyncio.run(made(Told(build))), asyncio.run(made(Reused(build)))
    assert len(build_bars(old)) == len(build_bars(fresh)) > 3
    for one, other in zip(build_bars(old), build_bars(fresh), strict=True):
        assert one.began - other.began == pytest.approx(0.5, abs=0.3)
    assert abs((old.build.since - fresh.build.since).total_seconds()) < 0.5
