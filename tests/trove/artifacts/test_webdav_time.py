"""Without obstore: answers of a WebDAV server that come too early, too slowly or never."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from store_kit import Authority, blob, key, step
from webdav_kit import DATA, HASTE, MIB, Asked, Hostile, dripping, refused, reply

from fabric.trove.artifacts import remote
from fabric.trove.artifacts.store import Store

pytestmark = pytest.mark.usefixtures("without_obstore")


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
    # it has only `remote.SILENCE`: nothing for its size, and no second try
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
        time.sleep(0.1)  # so that all connections are in use at once
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
