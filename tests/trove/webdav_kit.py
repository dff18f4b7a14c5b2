"""A WebDAV server that answers as a test says, for the client without obstore."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fabric.errors import StoreError
from fabric.trove.artifacts.backend import Haste
from fabric.trove.artifacts.store import Store

DATA = b"0123456789" * 10
DATE = "Tue, 01 Dec 2026 08:00:00 GMT"
MIB = 1024 * 1024
#: For a client that soon gives up.
HASTE = Haste(0.5, 1.5)


class Asked(NamedTuple):
    """A request, and the number of its connection."""

    method: str
    path: str
    headers: dict[str, str]
    connection: int


Answer = Callable[[Asked], bytes | Iterable[bytes]]


def reply(status: str = "200 OK", content: bytes = b"", **headers: object) -> bytes:
    """An answer; ``headers`` with "_" for "-", None for one that it lacks."""
    given = {"Content-Length": len(content), "Last-Modified": DATE}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}\r\n" for name, value in given.items() if value is not None]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + content


class Hostile:
    """A server that answers as a function says: with bytes, or with pieces for as long as it runs.

    A connection stays open unless its answer has "Connection: close".  ``reads`` is the most that
    is read of an upload, ``pause`` the time between its pieces.
    """

    def __init__(
        self,
        answer: Answer,
        reads: int = 1 << 40,
        pause: float = 0,
        address: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer
        self._tls = tls
        self._reads = reads
        self._pause = pause
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family)
        if pause:  # and what arrives does not wait long
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[Asked] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Hostile:
        self._threads[0].start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def store(self, scratch: Path, path: str = "/a", haste: Haste | None = None) -> Store:
        return Store(f"http://127.0.0.1:{self.port}{path}", scratch, haste=haste)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count():
                client, _ = self._listener.accept()
                client.settimeout(0.1)
                self._threads.append(threading.Thread(target=self._serve, args=(client, number)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), client, contextlib.ExitStack() as more:
            if self._tls:
                client.settimeout(5)
                client = more.enter_context(self._tls.wrap_socket(client, server_side=True))
                client.settimeout(0.1)
            rest = b""
            while not self._over.is_set():
                while b"\r\n\r\n" not in rest:
                    rest += self._received(client)
                head, _, rest = rest.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                size = min(self._reads, int(headers.get("content-length", 0)))
                while len(rest) < size:
                    time.sleep(self._pause)
                    size -= len(rest)
                    rest = self._received(client)
                rest = rest[size:]
                self.asked.append(Asked(method, path, headers, number))
                answer = self._answer(self.asked[-1])
                closes = False
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    closes = closes or b"Connection: close" in piece
                    client.settimeout(5)
                    client.sendall(piece)
                    client.settimeout(0.1)
                    if self._over.is_set():
                        return
                if closes:
                    return

    def _received(self, client: socket.socket) -> bytes:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                if piece := client.recv(65536):
                    return piece
                break
        raise ConnectionError


def refused(use: Callable[[], object]) -> str:
    """The text of the error, which is one of the store."""
    with pytest.raises(StoreError) as caught:
        use()
    return str(caught.value)


def dripping(start: bytes, rest: bytes = b"x" * 10_000) -> Iterator[bytes]:
    """The start of an answer, and of the rest five bytes a second."""
    yield start
    for each in rest:
        time.sleep(0.2)
        yield bytes([each])


def entry(
    path: str, inside: str = "", status: str = "200 OK", date: str = DATE, size: str = "5"
) -> str:
    """A member of a list; ``inside`` is more of its properties."""
    if date:
        inside += f"<D:getlastmodified>{date}</D:getlastmodified>"
    inside += f"<D:getcontentlength>{size}</D:getcontentlength>"
    return (
        f"<D:response><D:href>{path}</D:href><D:propstat><D:prop>{inside}</D:prop>"
        f"<D:status>HTTP/1.1 {status}</D:status></D:propstat></D:response>"
    )


FOLDER = "<D:resourcetype><D:collection/></D:resourcetype>"


def listing(*entries: str, before: str = "") -> bytes:
    text = f'{before}<D:multistatus xmlns:D="DAV:">{"".join(entries)}</D:multistatus>'
    return reply("207 Multi-Status", text.encode())
