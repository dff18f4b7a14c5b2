"""Prints the logs of several steps as they grow: whole lines, each after the name of its step."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

#: Bytes after which a line without an end is printed all the same.
LONGEST = 4096


class _Open(msgspec.Struct):
    name: str
    rest: bytes = b""  # the line that has not ended


class LogLines:
    """Prints by ``say``, which takes several lines at once; without it, nothing."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self._say = say
        self._open: dict[str, _Open] = {}

    def add(self, key: str, name: str, offset: int, data: bytes | memoryview) -> None:
        """Bytes of the log of a step, from ``offset`` on; 0 begins the log of another attempt."""
        if self._say is None:
            return
        if not offset:
            self.end(key)
        log = self._open.setdefault(key, _Open(name))
        whole, newline, log.rest = (log.rest + bytes(data)).rpartition(b"\n")
        if len(log.rest) > LONGEST:
            whole, newline, log.rest = whole + newline + log.rest, b"\n", b""
        if newline:
            self._print(log.name, whole)

    def end(self, key: str) -> None:
        """The log of a step has ended."""
        log = self._open.pop(key, None)
        if log is not None and log.rest:
            self._print(log.name, log.rest)

    def _print(self, name: str, lines: bytes) -> None:
        assert self._say is not None
        # a carriage return begins a line anew, as of a progress bar: its last state counts
        texts = (line.rstrip("\r") for line in lines.decode(errors="replace").split("\n"))
        last = (text.rpartition("\r")[2] for text in texts)
        self._say("\n".join(f"{name} | {text}" for text in last))
