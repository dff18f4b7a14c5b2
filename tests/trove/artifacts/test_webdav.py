"""Without obstore, a WebDAV server that is broken or hostile costs only errors, and little time."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from store_kit import Authority, blob, key, step

from fabric.errors import StoreError
from fabric.host.cancel import CancelToken
from fabric.host.progress import unmoved
from fabric.jobs import Blob
from fabric.trove.artifacts import remote
from fabric.trove.artifacts.backend import Haste
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.substituters import Substituters

DATA = b"0123456789" * 10
DATE = "Tue, 01 Dec 2026 08:00:00 GMT"
MIB = 1024 * 1024


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
            for number in range(1000):
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


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setattr(remote, "RETRIES", 1)
    monkeypatch.setattr(remote, "SILENCE", 1)


def refused(use: Callable[[], object]) -> str:
    """The text of the error, which is one of the store."""
    with pytest.raises(StoreError) as caught:
        use()
    return str(caught.value)


def dripping(start: bytes, rest: bytes = b"x" * 10_000) -> Iterator[bytes]:
    """The start of an answer, and the rest a byte at a time."""
    yield start
    for each in rest:
        time.sleep(0.2)
        yield bytes([each])


# -- lists of folders --------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (reply("200 OK", b"<html><body/></html>"), "200 OK"),
        (reply("207 Multi-Status", b"<html><body/></html>"), "it is a list of no folder"),
        (reply("207 Multi-Status", b"<html>"), "it is a list of no folder"),
        (reply("207 Multi-Status", b"no XML"), "syntax error"),
        (listing(entry(f"/a/manifests/{key(1)}", date="")), f"{key(1)} has no date"),
        (listing(entry(f"/a/manifests/{key(1)}", date="gibberish")), "'gibberish' is no date"),
        (listing(entry(f"/a/manifests/{key(1)}", date=DATE.replace("2", "2" * 30))), "is no date"),
        (listing(entry(f"/a/manifests/{key(1)}", status="403 No")), f"{key(1)} has no date"),
        (listing(entry(f"/a/manifests/{key(1)}", size="-1")), "'-1' is no size"),
        (listing(entry(f"/a/manifests/{key(1)}", size="")), "'' is no size"),
        (listing(entry("http://[/x")), "Invalid IPv6 URL"),
        (listing("<D:response>" * 100), "it is nested too deeply"),
        (listing(entry("/a/&x;"), before='<!DOCTYPE a [<!ENTITY x "y">]>'), "it has a DOCTYPE"),
        (listing()[:-5] + b"Connection: close", "unclosed token"),
    ],
)
def test_list_that_is_no_list_is_an_error(answer: bytes, text: str, tmp_path: Path) -> None:
    """And not an empty one: gc would remove what no listed manifest names."""
    with Hostile(lambda _: answer) as server:
        store = server.store(tmp_path)
        for use in (lambda: list(store.keys()), store.usage):
            said = refused(use)
            assert text in said
            assert said.endswith(
                "; only a WebDAV server that answers PROPFIND can be listed and cleaned from here"
            )


def test_list_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    whole = listing(entry(f"/a/manifests/{key(1)}"))
    broken = [whole.replace(b"207", b"207 Connection: close")[:250]]
    with Hostile(lambda _: broken.pop() if broken else whole) as server:
        assert list(server.store(tmp_path).keys()) == [key(1)]
        assert len(server.asked) == 2


def test_list_of_no_folder_is_empty(tmp_path: Path) -> None:
    """A new server has none yet."""
    with Hostile(lambda asked: reply("404" if asked.method == "PROPFIND" else "200")) as server:
        store = server.store(tmp_path)
        assert list(store.keys()) == []
        assert store.usage().manifests == 0
        assert store.gc(set(), now=time.time).bytes == 0


def test_list_has_only_what_is_below_its_folder(tmp_path: Path) -> None:
    right = f"/a/manifests/{key(1)}"
    others = ("/", "/other/", "/a/blobs/", "/a/manifests/../blobs/", "/a/manifests/x/../../blobs/")
    found = listing(entry(right), *(entry(f"{other}{key(2)}") for other in others))
    with Hostile(lambda _: found) as server:
        listed = server.store(tmp_path)._backend.list("manifests")
        assert [one.path for one in listed] == [f"manifests/{key(1)}"]


def test_list_may_have_other_properties(tmp_path: Path) -> None:
    lock = "<D:activelock><D:locktoken><D:href>urn:x</D:href></D:locktoken></D:activelock>"
    absent = (
        "<D:propstat><D:prop><D:getcontentlength/></D:prop><D:status>HTTP/1.1 404 No</D:status>"
    )
    found = entry(f"/a/manifests/{key(1)}", f"<D:lockdiscovery>{lock}</D:lockdiscovery>")
    found = found.replace("</D:response>", f"{absent}</D:propstat></D:response>")
    with Hostile(lambda _: listing(found)) as server:
        [one] = server.store(tmp_path)._backend.list("manifests")
        assert (one.path, one.size, one.time) == (f"manifests/{key(1)}", 5, 1796112000.0)


def test_folders_without_end_are_not_followed(tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes:
        return listing(*(entry(f"{asked.path}{name}/", FOLDER) for name in ("", "x", "x", "y")))

    with Hostile(answer) as server:
        assert server.store(tmp_path).usage().blobs == 0
        assert len(server.asked) == 2 * 3


def test_list_takes_little_memory(tmp_path: Path) -> None:
    """That of its objects, however large the answer is."""
    found = listing(entry("/a/manifests/x", "<D:x/>" * MIB))
    with Hostile(lambda _: found) as server:
        store = server.store(tmp_path)
        tracemalloc.start()
        try:
            assert len(list(store._backend.list("manifests"))) == 1
            assert tracemalloc.get_traced_memory()[1] < len(found)
        finally:
            tracemalloc.stop()


# -- objects -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Content_Length": None}, "its answer has no valid Content-Length: None is no size"),
        ({"Content_Length": "abc"}, "its answer has no valid Content-Length: 'abc' is no size"),
        ({"Content_Length": -5}, "its answer has no valid Content-Length: '-5' is no size"),
        ({"Last_Modified": "gibberish"}, "'gibberish' is no date"),
        ({"Last_Modified": DATE.replace("2", "2" * 30)}, "is no date"),
        ({"Last_Modified": DATE.replace("GMT", "+" + "9" * 20)}, "is no date"),
    ],
)
def test_object_of_no_size_or_date_is_an_error(
    headers: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """And neither absent nor damaged: both would have it built again."""
    with Hostile(lambda _: reply(content=DATA, Connection="close", **headers)) as server:
        store = server.store(tmp_path)
        for use in (
            lambda: store.has([key(1)]),
            lambda: store.manifest(key(1)),
            lambda: store.path(blob(DATA)),
            lambda: store.put(*step(1)),
        ):
            assert text in refused(use)


@pytest.mark.parametrize("encoded", [False, True])
def test_content_without_end_is_not_read(encoded: bool, tmp_path: Path) -> None:
    """Even if the server says before how long it is."""

    def answer(asked: Asked) -> Iterator[bytes]:
        more: dict[str, Any] = {"Transfer_Encoding": "chunked"} if encoded else {}
        part = "range" in asked.headers
        if not part:
            more["Content_Length"] = len(DATA)
        else:
            more |= {"Content_Length": None, "Content_Range": f"bytes 50-99/{len(DATA)}"}
        piece = b"%x\r\n%b\r\n" % (MIB, b"x" * MIB) if encoded else b"x" * MIB
        first = b"%x\r\n%b\r\n" % (len(DATA), DATA) if encoded else DATA
        if encoded or part:
            yield reply("206 Partial Content" if part else "200 OK", **more)
            yield first[50:] if part and not encoded else first
            for _ in range(1000):
                yield piece
        else:
            yield reply(**more, Connection="close") + DATA[:50]

    with Hostile(answer) as server:
        began = time.monotonic()
        tracemalloc.start()
        try:
            assert server.store(tmp_path).read(blob(DATA)) == DATA
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()
        assert time.monotonic() - began < 20


def ranged(size: int, answer: Callable[[int], bytes]) -> Answer:
    """Answers a request for the end of an object; the whole one breaks off in the middle."""

    def reply_(asked: Asked) -> bytes:
        if part := asked.headers.get("range"):
            return answer(int(part.removeprefix("bytes=").partition("-")[0]))
        content = b"" if asked.method == "HEAD" else DATA[: size // 2]
        return reply(content=content, Content_Length=size, ETag='"1"', Connection="close")

    return reply_


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Range": f"bytes 0-49/{len(DATA)}"},
        {"Content_Range": None},
        {"status": "200 OK"},
    ],
)
def test_part_that_is_another_one_is_an_error(headers: dict[str, str], tmp_path: Path) -> None:
    """The store uses none of its bytes: they are of another part."""

    def part(start: int) -> bytes:
        right = {"Content_Range": f"bytes {start}-99/{len(DATA)}", "ETag": '"1"'}
        return reply(**{"status": "206 Partial Content", **right, **headers}, content=DATA[start:])

    with Hostile(ranged(len(DATA), part)) as server:
        store = server.store(tmp_path)
        for use in (lambda: store.read(blob(DATA), 60, 40), lambda: store.path(blob(DATA))):
            said = refused(use)
            assert "it does not send the part that was asked for" in said
            assert "damaged" not in said
        headers.update(status="206 Partial Content", Content_Range="bytes 60-99/*")
        assert store.read(blob(DATA), 60, 40) == DATA[60:]


@pytest.mark.parametrize("size", [40, None])
def test_part_that_breaks_off_is_asked_for_again(size: int | None, tmp_path: Path) -> None:
    short = [DATA[60:70]]

    def part(start: int) -> bytes:
        status, place = "206 Partial Content", f"bytes {start}-99/{len(DATA)}"
        content = short.pop() if short else DATA[start:]
        return reply(status, content, Content_Range=place, Content_Length=size, Connection="close")

    with Hostile(ranged(len(DATA), part)) as server:
        assert server.store(tmp_path).read(blob(DATA), 60, 40) == DATA[60:]


def test_download_resumes_if_its_tag_is_weak(tmp_path: Path) -> None:
    """A server compares no weak tag for If-Match, and answers 412."""

    def answer(asked: Asked) -> bytes:
        if "if-match" in asked.headers:
            return reply("412 Precondition Failed")
        if "range" in asked.headers:
            place = f"bytes 50-99/{len(DATA)}"
            return reply("206 Partial Content", DATA[50:], Content_Range=place, ETag='W/"1"')
        return reply(content=DATA[:50], Content_Length=100, ETag='W/"1"', Connection="close")

    with Hostile(answer) as server:
        assert server.store(tmp_path).read(blob(DATA)) == DATA


# -- answers that come before their time, or never ---------------------------------------------


@pytest.mark.parametrize(
    "early", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103\r\nX: 1\r\n\r\n"]
)
def test_answer_to_be_continued_counts_for_nothing(early: bytes, tmp_path: Path) -> None:
    """Neither is anything stored, nor is the rest taken for the next answer."""

    def answer(asked: Asked) -> bytes:
        if asked.method == "PUT":
            return early * 3 + reply("403 Forbidden")
        return early + reply("200 OK" if asked.path.endswith(key(3)) else "404 Not Found")

    with Hostile(answer) as server:
        store = server.store(tmp_path)
        assert "403 Forbidden" in refused(lambda: store.put(*step(1)))
        assert store.there([blob(b"x")]) == store.has([key(1)]) == set()


def test_part_that_nobody_asked_for_is_an_error(tmp_path: Path) -> None:
    """It would count as a damaged object."""
    with Hostile(lambda _: reply("206 Partial Content", DATA[:50])) as server:
        store = server.store(tmp_path)
        for use in (lambda: store.read(blob(DATA)), lambda: store.manifest(key(1))):
            said = refused(use)
            assert "206 Partial Content" in said
            assert "damaged" not in said


def test_upload_that_is_only_partly_read_is_not_stored(tmp_path: Path) -> None:
    big = bytes(32 * MIB)

    def answer(asked: Asked) -> bytes:
        if asked.method == "HEAD":
            return reply("404 Not Found")
        return reply("201 Created", Connection="close")

    with Hostile(answer, reads=MIB) as server:
        refused(lambda: server.store(tmp_path).put(*step(1, big)))
        assert not any(
            asked.path.endswith(key(1)) for asked in server.asked if asked.method == "PUT"
        )


@pytest.mark.parametrize("tls", [False, True])
def test_refusal_of_an_upload_that_is_only_partly_read_is_told(tls: bool, tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes:
        if asked.method == "HEAD":
            return reply("404 Not Found")
        return reply("413 Too Large", Connection="close")

    authority, context = Authority(tmp_path), None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*authority.certificate("127.0.0.1"))
    with Hostile(answer, reads=MIB, tls=context) as server:
        url = f"http{'s' if tls else ''}://127.0.0.1:{server.port}/a"
        store = Store(url, tmp_path / "scratch", ca=authority.file)
        said = refused(lambda: store.put(*step(1, bytes(32 * MIB))))
        assert "413 Too Large; the server takes no files of that size" in said


HASTE = Haste(0.5, 1.5)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: dripping(b"HTTP/1.1 200 OK\r\nX: "),
        lambda: dripping(reply(content=DATA)[:-100], DATA),
        lambda: dripping(reply("400 Bad", Content_Length=4000)),
        lambda: dripping(reply("207 Multi-Status", Content_Length=4000), b" " * 1000),
        lambda: dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        lambda: (b"HTTP/1.1 100 Continue\r\n\r\n" * 100 for _ in range(10**6)),
        lambda: (b"HTTP/1.1 103 Hints\r\n\r\n" * 100 for _ in range(10**6)),
    ],
    ids=["head", "content", "refusal", "list", "chunks", "100", "103"],
)
def test_answer_that_drips_ends_in_time(
    answer: Callable[[], Iterable[bytes]], tmp_path: Path
) -> None:
    with Hostile(lambda _: answer()) as server:
        store = server.store(tmp_path, haste=HASTE)
        for use in (lambda: store.read(blob(DATA)), lambda: list(store.keys())):
            began = time.monotonic()
            refused(use)
            assert time.monotonic() - began < 20


def test_upload_that_is_answered_is_over(tmp_path: Path) -> None:
    """However long the page is that comes with the answer."""
    with Hostile(lambda _: dripping(reply("201 Created", Content_Length=4000))) as server:
        began = time.monotonic()
        server.store(tmp_path)._backend.write("clock", b"")
        assert time.monotonic() - began < 20


def test_upload_that_is_too_slow_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SLOWEST", 1 << 40)
    monkeypatch.setattr(remote, "PATIENCE", 0)
    big = tmp_path / "big"
    big.write_bytes(bytes(64 * MIB))
    manifest, files = step(1, big.read_bytes())
    files[blob(big.read_bytes()).sha256] = big
    with Hostile(lambda _: reply("404 Not Found"), pause=0.005) as server:
        began = time.monotonic()
        said = refused(lambda: server.store(tmp_path).put(manifest, files))
        assert time.monotonic() - began < 20
        assert "timed out; check that the server is up" in said


def test_connections_that_hang_are_not_tried_one_after_another(tmp_path: Path) -> None:
    def answer(_: Asked) -> Iterable[bytes]:
        time.sleep(0.1)
        return [] if hangs else [reply()]

    hangs: list[bool] = []
    with Hostile(answer) as server:
        store = server.store(tmp_path)
        store.has(map(key, range(16)))
        assert len({asked.connection for asked in server.asked}) > 8
        hangs.append(True)
        began = time.monotonic()
        assert "timed out" in refused(lambda: store.has([key(1)]))
        assert time.monotonic() - began < 8


# -- URLs and processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/a%20b", "/a%20b"), ("/a b", "/a%20b"), ("/a%2Fb", "/a%2Fb"), ("/ä", "/%C3%A4"), ("", "")],
)
def test_path_of_a_url_is_asked_for_as_it_is(path: str, asked: str, tmp_path: Path) -> None:
    name = f"{asked}/manifests/{key(1)}"

    def answer(asked: Asked) -> bytes:
        return listing(entry(name)) if asked.method == "PROPFIND" else reply()

    with Hostile(answer) as server:
        store = server.store(tmp_path, path)
        store.has([key(1)])
        assert list(store.keys()) == [key(1)]
        assert [one.path for one in server.asked] == [name, f"{asked}/manifests/"]


def test_host_may_be_an_address_of_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hostile(lambda _: reply(content=b"1"), address="::1") as server:
        monkeypatch.setattr(http.client.HTTPConnection, "default_port", server.port)
        for url in (f"http://[::1]:{server.port}/a", "http://[::1]/a"):
            assert Store(url, tmp_path)._backend.get("x", 9) == b"1"
        assert {one.headers["host"] for one in server.asked} == {"[::1]"}


def test_url_with_an_impossible_host_is_rejected_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used as an artifact store"):
        Store("http://a b/c", tmp_path)


def test_process_and_its_fork_share_no_connection(tmp_path: Path) -> None:
    """Each would get answers to requests of the other."""
    with Hostile(lambda asked: reply(content=asked.path.encode())) as server:
        backend = server.store(tmp_path)._backend
        asking = threading.Thread(target=backend.get, args=("x", 99))
        asking.start()
        asking.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
            child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                backend._store.get("y").bytes()  # type: ignore[attr-defined]
            os._exit(0)
        os.waitpid(child, 0)
        backend.get("z", 99)
        first, forked, last = server.asked
        assert first.connection == last.connection != forked.connection


def test_redirection_is_not_followed(tmp_path: Path) -> None:
    """No other server gets the password."""
    password = tmp_path / "password"
    password.write_text("user:secret")
    with Hostile(lambda _: reply()) as other:
        there = f"http://127.0.0.1:{other.port}/a/"
        with Hostile(lambda _: reply("302 Found", Location=there)) as server:
            store = Store(f"http://127.0.0.1:{server.port}/a", tmp_path, password=password)
            for use in (lambda: store.has([key(1)]), lambda: store.put(*step(1))):
                assert "302 Found" in refused(use)
        assert not other.asked


# -- folders and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["409 Conflict", "404 Not Found"])
def test_folders_are_made_if_the_server_makes_none(status: str, tmp_path: Path) -> None:
    """As with obstore: Apache makes none."""
    there = {"/a"}

    def answer(asked: Asked) -> bytes:
        folder = asked.path.rstrip("/").rpartition("/")[0]
        if asked.method == "MKCOL":
            if folder not in there:
                return reply("409 Conflict")
            if asked.path.rstrip("/") in there:
                return reply("405 Method Not Allowed")
            there.add(asked.path.rstrip("/"))
            return reply("201 Created")
        if asked.method == "PUT":
            return reply("201 Created" if folder in there else status)
        return reply("404 Not Found")

    with Hostile(answer) as server:
        store = server.store(tmp_path)
        store.put(*step(1, b"one", b"two"))
        assert {"/a/blobs", "/a/manifests"} < there
        stored = len(server.asked)
        store.put(*step(1, b"one", b"two"))
        assert not [one for one in server.asked[stored:] if one.method == "MKCOL"]


def test_upload_to_nowhere_is_an_error(tmp_path: Path) -> None:
    """And no blob that is missing, for which the step is to be built."""
    manifest = msgspec.structs.replace(step(1)[0], log=Blob.of(b"in it"))
    with Hostile(lambda _: reply("404 Not Found")) as server:
        store = server.store(tmp_path)
        for use in (lambda: store.put(*step(1)), lambda: store.put_equal(manifest)):
            assert "404 Not Found; check that" in refused(use)


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes:
        statuses = {"PUT": "409 Conflict", "MKCOL": "403 Forbidden"}
        return reply(statuses.get(asked.method, "404 Not Found"))

    with Hostile(answer) as server:
        said = refused(lambda: server.store(tmp_path).put(*step(1)))
        assert "403 Forbidden; the store refuses to store" in said


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_substituter_that_refuses_does_not_rest(status: str, tmp_path: Path) -> None:
    """As with obstore: it answers, and may give others what it has."""
    said: list[str] = []
    with Hostile(lambda _: reply(status)) as server:
        asked = Substituters([server.store(tmp_path, haste=HASTE)], tmp_path / "resting")
        for _ in range(2):
            assert asked.find(key(1), CancelToken(), said.append, unmoved) is None
    assert len(said) == 2
    assert "check `artifacts-password`" in said[0]
    assert "not asked" not in said[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"\x1b[31mNo HTTP" * 2000 + b"\r\n\r\nConnection: close",
        b"HTTP/\x1b[31m" * 2000 + b" 200\r\n\r\nConnection: close",
        b"HTTP/1.1 400 " + b"\x1b[31mBad" * 2000 + b"\r\nConnection: close\r\n\r\n",
        reply("400 Bad", b"\x1b[31mBad" * 500),
    ],
)
def test_error_shows_little_of_an_answer(answer: bytes, tmp_path: Path) -> None:
    with Hostile(lambda _: answer) as server:
        store = server.store(tmp_path)
        for use in (lambda: store.manifest(key(1)), lambda: list(store.keys())):
            said = refused(use)
            assert len(said) < 700
            assert said.isprintable()
            assert "its answer is not HTTP: " in said or "400 " in said
