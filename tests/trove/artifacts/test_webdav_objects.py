"""Without obstore: objects from a WebDAV server that is broken or hostile."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_kit import blob, key, step
from webdav_kit import DATA, DATE, MIB, Answer, Asked, Hostile, refused, reply

from fabric.jobs import Blob

pytestmark = pytest.mark.usefixtures("without_obstore")


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


def test_garbage_closes_its_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, which warns of open sockets, may collect them first."""
    warned: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", warned.append)
    with Hostile(lambda _: reply(content=DATA)) as server:
        for number in range(20):
            store = server.store(tmp_path / str(number))
            store.there(Blob(f"{n:064}", len(DATA)) for n in range(8))
            pieces = store.stream(blob(DATA))
            next(pieces)
            garbage: list[object] = [store, pieces]
            garbage.append(garbage)
            del store, pieces, garbage
            gc.collect()
    assert not warned


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
