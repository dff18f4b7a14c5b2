"""What a build looks like."""

import io
import json

import pytest

from fabric.render import (
    BuildView,
    JsonScreen,
    PlainScreen,
    RunningView,
    draw,
    duration,
    size,
    table,
)

VIEW = BuildView(
    title="minimal",
    total=20,
    done=5,
    failed=0,
    cached=3,
    seconds=61,
    left=100,
    running=(RunningView("zlib", "worker-1", "configure", 3.0, 12.0, 2_500),),
)


def test_the_live_part_says_what_runs_where_how_long_and_how_much_is_left() -> None:
    step, total = (line for line, _ in draw(VIEW, since=4.0))
    for fact in ("zlib", "worker-1", "configure", "7.0 s of ~12 s", "2.5 kB"):
        assert fact in step
    for fact in ("5 of 20 built", "3 cached", "1 min 05 s", "about 1 min 36 s left"):
        assert fact in total


def test_when_nothing_runs_it_says_why() -> None:
    view = BuildView("x", 2, 0, 0, 0, 0, 0, waiting="waiting for a worker of arch armv7l")
    assert "waiting for a worker of arch armv7l" in next(iter(draw(view)))[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (10**13, "10.0 TB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_a_pipe_gets_lines_and_a_program_gets_json() -> None:
    out = io.StringIO()
    plain = PlainScreen(out)
    plain.say("hello")
    plain.show(VIEW)
    plain.event("done")
    assert out.getvalue() == "hello\n"
    out = io.StringIO()
    screen = JsonScreen(out)
    screen.say("hello")
    screen.event("step", name="zlib", state="done")
    assert json.loads(out.getvalue()) == {"event": "step", "name": "zlib", "state": "done"}


def test_tables_align() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
    assert table([]) == []
