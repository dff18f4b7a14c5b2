"""Answers of a WebDAV server: until when they are read, which are success, and their errors."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Iterator, Mapping
from mmap import mmap
from typing import Any, cast

#: Bytes of an upload that are sent at a time.
SENT = 64 * 1024


class DavError(Exception):
    """The server cannot be used, or refuses; texts and names are as obstore has them."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class PermissionDeniedError(DavError):
    """It refuses this user."""


class UnauthenticatedError(DavError):
    """It does not know this user."""


class Failed(DavError):
    """The server fails, maybe not the next time."""


KINDS = {401: UnauthenticatedError, 403: PermissionDeniedError, 429: Failed}


class Timed(io.RawIOBase):
    """Reads an answer from a socket: only until ``until``, however slowly it comes.

    At first, this is when the head must be there: after the silence that the socket allows.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._raw = connected.makefile("rb", buffering=0)
        self._silence = connected.gettimeout() or 0
        self.until = time.monotonic() + self._silence

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(min(self._silence, left_until(self.until)))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    def __init__(self, connected: socket.socket, **more: Any) -> None:
        self.timed = Timed(connected)
        super().__init__(cast("socket.socket", self.timed), **more)


def left_until(until: float) -> float:
    """The seconds until then.  TimeoutError if it is past."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def pieces(body: bytes | mmap, connected: socket.socket, seconds: float) -> Iterator[bytes]:
    """The pieces of an upload, which altogether may take so long to be sent."""
    until = time.monotonic() + seconds
    for start in range(0, len(body), SENT):
        connected.settimeout(left_until(until))
        yield body[start : start + SENT]


def is_success(method: str, headers: Mapping[str, str], status: int) -> bool:
    """Whether an answer is one to the request, not to another one."""
    if status == 207:
        return method == "PROPFIND"
    if status == 206:
        return "Range" in headers
    return status < 300 and method != "PROPFIND"


def close_both(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
    """Close a connection; its answer has it, too, and would keep it open."""
    answer.close()
    connection.close()


def said(error: Exception) -> str:
    """What an exception of the connection means."""
    if type(error) in (http.client.BadStatusLine, http.client.UnknownProtocol):
        return f"its answer is not HTTP: {error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
