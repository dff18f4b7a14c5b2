"""The copy of a log that pages read: rows, numbers of lines, search."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import bounds
from fabric.errors import MachineFault
from fabric.web import log_file
from fabric.web.log_file import LogFile, PatternError, finder


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    made = LogFile(tmp_path)
    yield made
    made.close()


def rows_of(data: bytes, row: int) -> list[int]:
    """Where rows begin, by reading all of the log from its beginning."""
    begins, line = [0], 0
    for at in range(1, len(data) + 1):
        if data[at - 1] == 0x0A:
            line = at
            begins.append(at)
        elif at % row == 0 and at - line >= row and at < len(data):
            split = at
            if data[at] & 0xC0 == 0x80:
                back = next((n for n in (1, 2, 3) if data[at - n] & 0xC0 != 0x80), 0)
                split -= back if back and data[at - back] >= 0xC0 else 0
            begins.append(split)
    return begins


#: Bytes with long lines, characters of several bytes, and bytes that are no text.
LOGS = st.lists(
    st.one_of(
        st.sampled_from([b"\n", b"\n\n", b"a line\n", "ä€𝄞".encode(), b"\x80\x80\x80\x80\x80"]),
        st.binary(max_size=40),
        st.integers(0, 80).map(lambda n: b"x" * n),
        st.integers(0, 40).map(lambda n: "€".encode() * n),
    ),
    max_size=40,
).map(b"".join)


@given(data=LOGS, at=st.integers(0, 3000), length=st.integers(1, 200))
def test_log_file_finds_rows_and_lines_from_anywhere(data: bytes, at: int, length: int) -> None:
    at = min(at, max(0, len(data) - 1))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(log_file, "ROW", 16)
        patch.setattr(log_file, "BLOCK", 64)
        log = stack.enter_context(contextlib.closing(LogFile(directory)))
        for begin in range(0, len(data), 37):
            log.append(begin, data[begin : begin + 37])
        begins = rows_of(data, 16)
        assert log.row_at(at) == max(each for each in begins if each <= at)
        assert log.line_at(at) == data.count(b"\n", 0, at) + 1
        rows = log.rows_from(at, length)
        assert rows.offset == log.row_at(at)
        assert rows.line == data.count(b"\n", 0, rows.offset) + 1
        assert rows.data == data[rows.offset : rows.offset + len(rows.data)]
        end = rows.offset + len(rows.data)
        assert end in begins or end == len(data)
        assert rows.data or not data
        before = log.rows_to(rows.offset, length)
        assert before.offset in begins
        assert before.offset + len(before.data) == rows.offset
        assert before.data or rows.offset == 0
        assert log.lines == data.count(b"\n") + (data[-1:] not in (b"", b"\n"))
        lines = [0, *(found.end() for found in re.finditer(b"\n", data))]
        for number, offset in enumerate(lines, 1):
            assert log.offset_of(number) == (offset if offset < len(data) or not offset else None)
        assert log.offset_of(len(lines) + 1) is None


def test_log_file_of_many_lines(log: LogFile) -> None:
    number = 300_000
    data = b"".join(b"line %d\n" % n for n in range(1, number + 1))
    for at in range(0, len(data), 100_000):
        log.append(at, data[at : at + 100_000])
    assert (log.size, log.lines) == (len(data), number)
    for line in (1, 2, 9_999, 123_456, number):
        offset = log.offset_of(line)
        assert offset is not None
        rows = log.rows_from(offset, 1)
        assert rows.data.startswith(b"line %d\n" % line)
        assert rows.line == line
    assert log.offset_of(number + 1) is None
    rows = log.rows_to(log.size, 64_000)
    assert rows.data.endswith(b"line %d\n" % number)
    assert rows.data.startswith(b"line %d\n" % rows.line)
    assert 64_000 <= len(rows.data) < 64_100


def test_log_file_of_one_long_line(log: LogFile) -> None:
    log.append(0, "€".encode() * 3_500_000)
    rows = log.rows_from(5_000_000, 65_536)
    assert rows.data.decode() == "€" * (len(rows.data) // 3)
    assert 32_768 < len(rows.data) < 100_000
    assert (rows.line, log.lines) == (1, 1)


def test_log_file_takes_each_byte_once(log: LogFile) -> None:
    log.append(0, b"one\n")
    log.append(2, b"e\ntwo\n")
    log.append(0, b"one\n")
    log.append(20, b"after a gap")
    assert log.read(0, 100) == b"one\ntwo\n"
    assert log.lines == 2


def test_log_file_begins_again(log: LogFile) -> None:
    log.append(0, b"one\ntwo\n" * 50_000)
    log.clear()
    log.append(0, b"three")
    assert (log.size, log.lines, log.read(0, 100)) == (5, 1, b"three")
    assert log.line_at(5) == 1


def test_log_file_without_room_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogFile(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        MachineFault,
        match=rf"^{tmp_path}: no log can be kept there to be shown: No space left on device$",
    ):
        log.append(0, b"x")
    assert log.size == 0
    log.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineFault, match="no log can be kept there to be shown: Not a directory"):
        LogFile(tmp_path / "file" / "x")


# -- search --------------------------------------------------------------------------------


def search(log: LogFile, text: str, **options: bool) -> list[tuple[int, str]]:
    found = log.search(finder(text, **options), 0, 100, 10.0)
    assert found.next == -1
    return [(match.line, match.text) for match in found.matches]


def test_search_finds_lines(log: LogFile) -> None:
    log.append(0, b"one\nError: 1 and error: 2\nthree\nan ERROR at the end")
    both = [(2, "Error: 1 and error: 2"), (4, "an ERROR at the end")]
    assert search(log, "error") == both
    assert search(log, "error", case=True) == both[:1]
    assert search(log, "r.r") == []
    assert search(log, "r.r", regex=True) == both
    assert search(log, "^(one|three)$", regex=True) == [(1, "one"), (3, "three")]
    assert search(log, r"three\s+an", regex=True) == [], "a match does not go on in the next line"
    assert search(log, "1 AND", case=False) == both[:1]
    assert search(log, ": 2", case=False) == both[:1]


def test_search_of_other_letters_and_no_text(log: LogFile) -> None:
    log.append(0, "Größe: 5 ß\n".encode() + b"\xff\xfe gr\xc3\n\0\0nul\n")
    assert search(log, "GRÖSSE") == []
    assert search(log, "GRÖßE") == [(1, "Größe: 5 ß")]
    assert search(log, "gr") == [(1, "Größe: 5 ß"), (2, "\ufffd\ufffd gr\ufffd")]
    assert search(log, "nul") == [(3, "\0\0nul")]


def test_search_ignores_colours_within_a_text(log: LogFile) -> None:
    log.append(
        0,
        b"\x1b[01m\x1b[Kfoo.c:1:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kno such\n"
        b"plain\n\n\x1b]8;;http://x\x1b\\foo.c:\x1b]8;;\x1b\\1: error: no\n",
    )
    both = [(1, "foo.c:1: error: no such"), (4, "foo.c:1: error: no")]
    assert search(log, "foo.c:1: error: no") == both
    assert search(log, "foo.c:1: error: no such") == both[:1]
    found = log.search(finder("1: error: no"), 0, 10, 10.0)
    assert [match.at for match in found.matches] == [0, log.offset_of(4)]


def test_search_across_pieces_of_a_long_line(log: LogFile) -> None:
    """The text lies where the search reads the log in two pieces."""
    log.append(0, b"x" * (bounds.MIB - 3) + b"needle" + b"x" * bounds.MIB + b"\nneedle\n")
    found = log.search(finder("needle"), 0, 10, 10.0)
    assert [match.line for match in found.matches] == [1, 2]
    first = log.rows_from(found.matches[0].at, 1)
    assert b"needle" in first.data


def test_search_ends_in_time_and_goes_on(log: LogFile) -> None:
    log.append(0, b"a line\n" * 700_000)
    none = log.search(finder("nothing"), 0, 10, 0.0)
    assert none.matches == []
    assert 0 < none.next < log.size
    some = log.search(finder("line"), 0, 10, 10.0)
    assert [match.line for match in some.matches] == list(range(1, 11))
    more = log.search(finder("line"), some.next, 10, 10.0)
    assert [match.line for match in more.matches] == list(range(11, 21))


@pytest.mark.bound("WEB_PATTERN")
@pytest.mark.bound("WEB_PATTERN_MEMORY")
def test_compiled_expression_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower one than the default of RE2."""
    finder(r"\pL{20}", regex=True)
    monkeypatch.setattr(bounds, "WEB_PATTERN_MEMORY", 64 * bounds.KIB)
    with pytest.raises(PatternError, match="pattern too large"):
        finder(r"\pL{20}", regex=True)


@pytest.mark.parametrize(
    ("text", "regex", "error"),
    [
        ("", False, "there is no text to search for"),
        ("x" * (bounds.WEB_PATTERN + 1), False, "a text to search for may have 256 bytes"),
        ("(", True, "not a regular expression (RE2): missing ): (?m)("),
        (r"\pL{500}" * 20, True, "not a regular expression (RE2): pattern too large"),
        ("\ud800", True, "not a regular expression (RE2): it is not text"),
        (r"(a)\1", True, "not a regular expression (RE2): invalid escape sequence: \\1"),
    ],
)
def test_search_for_what_cannot_be_found(text: str, regex: bool, error: str) -> None:
    with pytest.raises(PatternError, match=f"^{re.escape(error)}"):
        finder(text, regex=regex)


def test_search_results_are_short(log: LogFile) -> None:
    log.append(0, b"x" * 500_000 + b" here " + b"y" * 500_000)
    [match] = log.search(finder("here"), 0, 10, 10.0).matches
    assert "here" in match.text
    assert len(match.text) <= 4 * log_file.SNIPPET
    matches = log.search(finder("x+", regex=True), 0, 10, 10.0).matches
    assert [match.line for match in matches] == [1, 1], "one for each part that is searched at once"
    assert all(len(match.text) <= 4 * log_file.SNIPPET for match in matches)
