"""Logs of several steps as lines."""

from __future__ import annotations

from fabric.client.log_lines import LONGEST, LogLines


def test_lines_are_whole_and_have_names() -> None:
    said: list[str] = []
    lines = LogLines(said.append)
    lines.add("a", "one", 0, b"first\nsec")
    lines.add("b", "two", 0, memoryview(b"other"))
    lines.add("a", "one", 9, b"ond\r\n\nthird")
    assert said == ["one | first", "one | second\none | "]
    lines.end("a")
    lines.end("a")
    lines.add("b", "two", 5, b"\xff\n")
    assert said[2:] == ["one | third", "two | other\N{REPLACEMENT CHARACTER}"]


def test_last_state_of_a_progress_bar_counts() -> None:
    said: list[str] = []
    LogLines(said.append).add("a", "one", 0, b"10%\r20%\r100%\n")
    assert said == ["one | 100%"]


def test_log_of_another_attempt_begins_anew() -> None:
    said: list[str] = []
    lines = LogLines(said.append)
    lines.add("a", "one", 0, b"cut sh")
    lines.add("a", "one", 0, b"again\n")
    assert said == ["one | cut sh", "one | again"]


def test_line_without_end_is_not_kept() -> None:
    said: list[str] = []
    lines = LogLines(said.append)
    for offset in range(10):
        lines.add("a", "one", offset * 1000, b"x" * 1000)
    assert [len(text) for text in said] == [5006, 5006]
    assert LONGEST < 5000
