"""Traces of builds, as viewers read them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from trace_kit import Trace

from fabric.client.build_trace import Attempt, TracedBuild, trace
from fabric.wire.messages import AttemptInfo, GraphStep

BEGAN = 1_700_000_000.0


def attempt(
    name: str,
    began: float,
    ended: float,
    worker: str = "w1",
    *,
    fence: int = 1,
    result: str = "done",
    message: str = "",
    phases: tuple[tuple[str, float], ...] = (),
) -> Attempt:
    key = name.encode().hex().ljust(64, "0")[:64]
    info = AttemptInfo(
        key=key, fence=fence, name=name, kind="chunk", worker=worker, ago=0.0,
        seconds=ended - began, result=result, message=message, phases=phases,  # type: ignore[arg-type]
    )  # fmt: skip
    return Attempt(info, BEGAN + began, BEGAN + ended)


def build(
    *attempts: Attempt, graph: tuple[GraphStep, ...] = (), title: str = "small"
) -> TracedBuild:
    ended = max((one.ended for one in attempts), default=BEGAN) + 1.0
    return TracedBuild("ab" * 16, title, "alice", "done", BEGAN, ended, attempts, graph)


def checked(traced: TracedBuild) -> Trace:
    return Trace(json.dumps(trace(traced), allow_nan=False))


def test_trace_has_a_lane_for_each_slot() -> None:
    a = attempt("a", 0.0, 2.0, phases=(("fetch", 0.0), ("build", 0.5), ("store", 1.5)))
    b = attempt("b", 1.0, 3.0)
    c = attempt("c", 2.0, 4.0, result="failed", message="Error 1", fence=7)
    d = attempt("d", 0.0, 4.0, "w0", result="")
    found = checked(build(c, d, a, b))
    assert list(found.processes.values()) == ["build", "w0", "w1"]
    steps = found.steps()
    assert [(one["name"], one["tid"], one["ts"], one["dur"]) for one in steps["w1"]] == [
        ("a", 1, 0, 2_000_000),
        ("b", 2, 1_000_000, 2_000_000),
        ("c", 1, 2_000_000, 2_000_000),
    ]
    assert found.phases(steps["w1"][0]) == ["fetch", "build", "store"]
    failed, running = steps["w1"][2], steps["w0"][0]
    assert failed["args"] == {
        "key": c.info.key, "fence": "7", "kind": "chunk", "result": "failed", "message": "Error 1",
    }  # fmt: skip
    assert failed["cname"] == "terrible"
    assert running["args"]["result"] == "running"
    assert found.facts == {
        "request": "ab" * 16, "requester": "alice", "state": "done", "title": "small",
        "began": BEGAN,
    }  # fmt: skip


def test_trace_has_arrows_between_steps() -> None:
    steps = [attempt("a", 0, 1), attempt("b", 0, 2, "w2"), attempt("c", 1, 3), attempt("d", 3, 4)]
    keys = [*(one.info.key for one in steps), "f" * 64]  # the last was cached
    depends = ((), (), (0,), (1, 2), (0,))
    graph = tuple(GraphStep(key, "x", "chunk", d) for key, d in zip(keys, depends, strict=True))
    found = checked(build(*steps, graph=graph))
    assert sorted(found.arrows) == [("a", "c"), ("b", "d"), ("c", "d")]


def test_trace_has_arrows_to_steps_that_began_a_moment_before_their_slot_was_free() -> None:
    """Pages of the history come at different moments, so times differ by milliseconds."""
    steps = [attempt("a", 0, 1), attempt("b", 1, 1.02), attempt("c", 1.01, 3)]
    graph = tuple(
        GraphStep(one.info.key, "x", "chunk", depends)
        for one, depends in zip(steps, ((), (), (0,)), strict=True)
    )
    found = checked(build(*steps, graph=graph))
    assert len(found.threads) == 2, "the build, and one slot"
    assert found.arrows == [("a", "c")]


def test_trace_without_attempts_shows_the_build() -> None:
    found = checked(build())
    assert found.steps() == {}
    assert list(found.threads.values()) == ["small"]


def test_trace_begins_with_an_attempt_that_was_there_before() -> None:
    found = checked(build(attempt("a", -5.0, 2.0)))
    [[whole], [before]] = found.slices.values()
    assert (whole["ts"], before["ts"]) == (5_000_000, 0)


TIMES = st.floats(min_value=-1e6, max_value=1e6)
NAMES = st.text(max_size=20) | st.sampled_from(
    (
        "",
        '"}],',
        "</script>",
        "\x00\x1b[31m",
        "\U0001f600\u2028",
    )
)


@given(
    facts=st.lists(
        st.tuples(
            NAMES, TIMES, st.floats(min_value=0, max_value=1e5), NAMES,
            st.lists(st.tuples(NAMES, TIMES), max_size=5), NAMES,
        ),
        max_size=12,
    ),
    title=NAMES,
    edges=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11))),
)  # fmt: skip
def test_trace_of_anything_is_valid(
    facts: list[tuple[str, float, float, str, list[tuple[str, float]], str]],
    title: str,
    edges: set[tuple[int, int]],
) -> None:
    """Peers send names, messages, and times, in any order."""
    attempts = [
        attempt(
            name, began, began + seconds, worker, fence=n, phases=tuple(phases), message=message
        )
        for n, (name, began, seconds, worker, phases, message) in enumerate(facts)
    ]
    keys = list(dict.fromkeys(one.info.key for one in attempts))
    graph = tuple(
        GraphStep(key, "x", "chunk", tuple(b for a, b in sorted(edges) if a == n and b < len(keys)))
        for n, key in enumerate(keys)
    )
    found = checked(build(*attempts, graph=graph, title=title))
    assert sum(map(len, found.steps().values())) == len(attempts)
    for one in (each for steps in found.steps().values() for each in steps):
        assert len(found.phases(one)) >= len(facts[int(one["args"]["fence"])][4])
