"""Holds the beginning of a log in a file without a name, with an index of its lines.

A row is what the page shows as one: a line, or a part of a very long one.  A row begins after a
newline, and at each multiple of `ROW` that is at least `ROW` bytes after the beginning of its line.
Whether a byte begins a row therefore depends on a few bytes around it, wherever reading begins.
static/log.js divides bytes into rows in the same way.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from fabric import bounds
from fabric.errors import FabricError, MachineFault

#: Bytes of a row; the first one of a line may have almost twice as many.
ROW = 4 * bounds.KIB
#: Bytes between two entries of the index.
BLOCK = 64 * bounds.KIB
#: Bytes that are searched at once: a longer line may be found several times.
SEARCHED = 256 * bounds.KIB
#: Characters of a line in a search result, around the match.
SNIPPET = 200

# Sequences that change colours, positions and titles: they may stand within words.
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\))")


class PatternError(FabricError):
    """A text to search for is not valid."""


class Match(msgspec.Struct, frozen=True):
    """A line with a match."""

    at: int  # offset of the row to show
    line: int  # its number, from 1
    text: str  # the part of the line around the match
    found: str  # what matches, or its beginning


class Found(msgspec.Struct, frozen=True):
    """The result of a search."""

    matches: list[Match]
    next: int  # offset from which to search on; -1: all of the log was searched


class Rows(NamedTuple):
    """Whole rows; ``line`` is the number of the line of the first one, which it may begin."""

    offset: int
    data: bytes
    line: int
    begins: bool


class LogFile:
    """Any thread may append, which takes turns, and read."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is made.  MachineFault if there is no room."""
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._no_room(error) from None
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all bytes."""
        with self._lock:
            os.ftruncate(self._file.fileno(), 0)
            #: newlines before each block
            self._newlines = array("Q", [0])
            self._count = 0
            self._digest = hashlib.sha256()
            self.size = 0

    def close(self) -> None:
        """Remove it from the disk."""
        with self._lock:
            self._file.close()

    @property
    def lines(self) -> int:
        """Lines so far; an unfinished one counts."""
        unfinished = self.size and self.read(self.size - 1, 1) != b"\n"
        return self._count + bool(unfinished)

    @property
    def sha256(self) -> str:
        """The digest of all bytes so far."""
        return self._digest.hexdigest()

    def append(self, offset: int, data: bytes | memoryview) -> None:
        """Add the bytes at ``offset`` that are not here yet; nothing if some before them are not.

        MachineFault if there is no room.
        """
        with self._lock:
            if offset <= self.size < offset + len(data):
                self._write(memoryview(data)[self.size - offset :])

    def _write(self, view: memoryview) -> None:
        fd, at = self._file.fileno(), self.size
        try:
            while at < self.size + len(view):
                at += os.pwrite(fd, view[at - self.size :], at)
        except OSError as error:
            raise self._no_room(error) from None
        self._digest.update(view)
        size = self.size
        while view:
            part = bytes(view[: BLOCK - size % BLOCK])
            view = view[len(part) :]
            size += len(part)
            self._count += part.count(b"\n")
            if size % BLOCK == 0:
                self._newlines.append(self._count)
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, as far as they are here."""
        return os.pread(self._file.fileno(), max(0, min(length, self.size - offset)), offset)

    # -- lines and rows ----------------------------------------------------------------------

    def line_at(self, offset: int) -> int:
        """The number of the line, from 1, to which the byte at ``offset`` belongs."""
        block = min(offset // BLOCK, len(self._newlines) - 1)
        rest = self.read(block * BLOCK, offset - block * BLOCK)
        return self._newlines[block] + rest.count(b"\n") + 1

    def offset_of(self, line: int) -> int | None:
        """Where the line with this number begins; None if there is none yet."""
        if line <= 1:
            return 0
        wanted = line - 1  # newlines before it
        block = bisect_left(self._newlines, wanted) - 1
        missing = wanted - self._newlines[block]
        at = block * BLOCK
        data = self.read(at, BLOCK)
        position = -1
        for _ in range(missing):
            position = data.find(b"\n", position + 1)
            if position < 0:
                return None
        return at + position + 1 if at + position + 1 < self.size else None

    def row_at(self, offset: int) -> int:
        """Where the row with the byte at ``offset`` begins."""
        begin = max(0, offset - offset % ROW - 2 * ROW)
        data = self.read(begin, offset + 4 - begin)  # a character has at most 4 bytes
        newline = data.rfind(b"\n", 0, max(0, offset - begin))
        line = begin + newline + 1 if newline >= 0 or not begin else begin - ROW
        grid = offset - offset % ROW + ROW
        while grid - line >= ROW:
            at = grid - _inside_character(data, grid - begin)
            if at <= offset:
                return at
            grid -= ROW
        return max(line, 0)

    def rows_from(self, offset: int, length: int) -> Rows:
        """The row with the byte at ``offset`` and those after it: about ``length`` bytes."""
        begin = self.row_at(min(offset, self.size))
        end = begin + max(length, 3 * ROW)
        end = self.size if end >= self.size else self.row_at(end)
        return self._rows(begin, end)

    def rows_to(self, end: int, length: int) -> Rows:
        """The rows that end at ``end``, where a row begins: about ``length`` bytes."""
        end = min(end, self.size)
        begin = self.row_at(max(0, end - max(length, 3 * ROW)))
        return self._rows(begin, end)

    def _rows(self, begin: int, end: int) -> Rows:
        begins = not begin or self.read(begin - 1, 1) == b"\n"
        return Rows(begin, self.read(begin, end - begin), self.line_at(begin), begins)

    # -- search ------------------------------------------------------------------------------

    def search(self, find: Finder, offset: int, most: int, seconds: float) -> Found:
        """The first ``most`` lines with a match from ``offset`` on, within ``seconds``."""
        deadline = time.monotonic() + seconds
        matches: list[Match] = []
        at = self.row_at(min(offset, self.size))
        while at < self.size:
            rows = self.rows_from(at, SEARCHED)
            end = rows.offset + len(rows.data)
            data = rows.data
            if not data.endswith(b"\n"):  # a match may go on in the next row of a line
                data += self.read(end, bounds.WEB_PATTERN)
            for match in _matches(find, data, len(rows.data), rows):
                if len(matches) == most:
                    return Found(matches, match.at)
                matches.append(match)
            at = end
            if time.monotonic() >= deadline and at < self.size:
                return Found(matches, at)
        return Found(matches, -1)

    def _no_room(self, error: OSError) -> MachineFault:
        return MachineFault(
            f"{self._directory}: no log can be kept there to be shown: {error.strerror}"
        )


#: Finds (begin, end) of the first match in some bytes from a position on; None if there is none.
Finder = Callable[[bytes, int], tuple[int, int] | None]


def finder(text: str, *, regex: bool = False, case: bool = False) -> Finder:
    """Finds ``text``; ``case``: capital letters differ from small ones.

    PatternError if it is empty, too long, or not a regular expression of RE2.
    """
    if not text:
        raise PatternError("there is no text to search for")
    wanted = text.encode(errors="surrogatepass")
    if len(wanted) > bounds.WEB_PATTERN:
        raise PatternError(f"a text to search for may have {bounds.WEB_PATTERN} bytes")
    if not regex and (case or not any(map(str.isalpha, text))):

        def find(data: bytes, at: int) -> tuple[int, int] | None:
            begin = data.find(wanted, at)
            return None if begin < 0 else (begin, begin + len(wanted))

        return find
    import re2

    options = re2.Options()
    options.max_mem = bounds.WEB_PATTERN_MEMORY
    options.log_errors = False
    options.case_sensitive = case
    options.never_nl = True
    options.literal = not regex
    try:
        pattern = re2.compile(f"(?m){text}" if regex else text, options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0] if isinstance(error, re2.error) else "it is not text"
        if isinstance(why, bytes):
            why = why.decode(errors="replace")
        raise PatternError(f"not a regular expression (RE2): {why}") from None

    def search(data: bytes, at: int) -> tuple[int, int] | None:
        found = pattern.search(data, at)
        return None if found is None else found.span()

    return search


def _matches(find: Finder, data: bytes, size: int, rows: Rows) -> Iterator[Match]:
    """A match for each line of the first ``size`` bytes of ``data`` that has some."""
    escaped = b"\x1b" in data
    clean = _SEQUENCE.sub(b"", data) if escaped else data
    at = lines = counted = 0  # newlines before ``counted``
    original = 0  # offset in ``data`` of the line at ``counted``
    while (span := find(clean, at)) is not None:
        begin, end = span
        newlines = clean.count(b"\n", counted, begin)
        lines += newlines
        line = clean.rfind(b"\n", 0, begin) + 1
        if escaped:
            for _ in range(newlines):
                original = data.index(b"\n", original) + 1
        else:
            original = line
        where = original if escaped else begin
        if where >= size:
            break
        text = _snippet(clean, line, begin, end)
        found = clean[begin : min(end, begin + SNIPPET)].decode(errors="replace")
        yield Match(rows.offset + where, rows.line + lines, text, found)
        counted = begin
        newline = clean.find(b"\n", end)
        if newline < 0:
            break
        at = newline + 1


def _snippet(data: bytes, line: int, begin: int, end: int) -> str:
    """The text around a match in its line."""
    stop = data.find(b"\n", begin)
    stop = len(data) if stop < 0 else stop
    first = max(line, begin - SNIPPET // 2)
    return data[first : min(stop, max(end, first + SNIPPET), first + 4 * SNIPPET)].decode(
        errors="replace"
    )


def _inside_character(data: bytes, at: int) -> int:
    """How many bytes before ``at`` the character (UTF-8) begins that has a part there."""
    if at >= len(data) or data[at] & 0xC0 != 0x80:
        return 0
    for back in range(1, min(3, at) + 1):
        if data[at - back] & 0xC0 != 0x80:
            return back if data[at - back] >= 0xC0 else 0
    return 0
