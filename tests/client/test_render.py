"""The rows and lines of a build."""

import io
import json
import re
from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from fabric.client.render import (
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
    began=1000.0,
    ends=1161.0,
    running=(RunningView("zlib", "worker-1", "configure", 1058.0, 12.0, 2_500),),
)
BAR = "━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌"


def drawn(view: BuildView, width: int = 119, height: int = 24) -> list[str]:
    return [line for line, _ in draw(view, 1065.0, width, height)]


@pytest.mark.parametrize(
    ("width", "step", "total"),
    [
        (
            119,
            "  zlib  configure  7.0 s of ~12 s  2.5 kB log  worker-1",
            f"  {BAR}  5 of 20 built, 3 cached, 1 min 05 s, about 1 min 36 s left",
        ),
        (
            79,
            "  zlib  configure  7.0 s of ~12 s  2.5 kB log  worker-1",
            "  ━━━╌╌╌╌╌╌╌╌╌  5 of 20 built, 3 cached, 1 min 05 s, about 1 min 36 s left",
        ),
        (
            50,
            "  zlib  configure  7.0 s of ~12 s  worker-1",
            "  5 of 20 built, 1 min 05 s, about 1 min 36 s left",
        ),
        (39, "  zlib  7.0 s of ~12 s  worker-1", "  5 of 20, 1 min 05 s, ~1 min 36 s left"),
        (30, "  zlib  7.0 s  worker-1", "  5 of 20, ~1 min 36 s left"),
    ],
)
def test_draw_leaves_out_columns_without_room(width: int, step: str, total: str) -> None:
    assert drawn(VIEW, width) == [step, total]


def test_draw_shows_what_comes_next_and_that_nothing_does() -> None:
    view = replace(VIEW, next=("jq", "xz", "a-long-name"))
    assert drawn(view, 79)[1] == "  next: jq, xz, a-long-name"
    assert drawn(view, 24)[1] == "  next: jq, xz, a-long-…"
    assert len(drawn(view, 79, height=6)) == 2, "no room"
    assert drawn(replace(VIEW, failed=1), 79)[1] == "  a step failed, so no other begins"
    assert "next" not in "".join(drawn(replace(view, running=()), 79))


def test_draw_shows_a_bar_for_a_transfer() -> None:
    running = (RunningView("zlib", "worker-1", "fetch 10.0 of 40.0 MB", 1058.0, 12.0, 0),)
    step = "fetch 10.0 of 40.0 MB  7.0 s of ~12 s  0 B log  worker-1"
    assert drawn(replace(VIEW, running=running))[0] == f"  zlib  ━━━╌╌╌╌╌╌╌╌╌ {step}"
    assert drawn(replace(VIEW, running=running), 70)[0] == f"  zlib  {step}"


@pytest.mark.parametrize("width", range(1, 300))
def test_draw_fits_any_width_and_height(width: int) -> None:
    steps = tuple(
        RunningView(f"chunk-{n}" * (n % 3 + 1), f"worker-{n}", "build", 1000.0 + n, 100.0, 10**6)
        for n in range(300)
    )
    view = replace(VIEW, running=steps, next=("jq", "xz"), failed=3)
    for height in (1, 2, 5, 24, 60):
        rows = drawn(view, width, height)
        assert len(rows) <= max(2, height)
        if width >= 19:
            assert all(len(row) <= width for row in rows), rows
    if width >= 40:
        assert all(re.search(r" \d.* s", row) for row in rows[:50]), rows


def test_draw_counts_steps_without_rows() -> None:
    steps = tuple(RunningView(f"c{n}", "w", "build", 1000.0, 0.0, 0) for n in range(9))
    lines = drawn(replace(VIEW, running=steps), height=5)
    assert [line.split()[:3] for line in lines[:4]] == [
        ["c0", "build", "1"], ["c1", "build", "1"], ["c2", "build", "1"], ["and", "6", "more"],
    ]  # fmt: skip
    assert "5 of 20 built" in lines[4]


def test_draw_says_why_nothing_runs() -> None:
    view = BuildView("x", 2, 0, 0, 0, 1000.0, 0.0, waiting="waiting for a worker of arch armv7l")
    assert drawn(view)[0] == "  waiting for a worker of arch armv7l  1 min 05 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (10**13, "10.0 TB")]
)
def test_size_in_words(count: int, text: str) -> None:
    assert size(count) == text


def test_screen_prints_lines_or_json() -> None:
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
    told = json.loads(out.getvalue())
    assert datetime.fromisoformat(told.pop("time")).utcoffset() == timedelta(0)
    assert told == {"event": "step", "name": "zlib", "state": "done"}


def test_table_aligns_columns() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
    assert table([]) == []
    assert table([("日本", "x"), ("a\nb\x1b[2J", "y")]) == ["日本  x", "a\\nb  y"]
