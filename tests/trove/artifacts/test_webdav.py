"""Without obstore: URLs, processes, folders and refusals of a WebDAV server."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import warnings
from pathlib import Path

import msgspec
import pytest
from store_kit import key, step
from webdav_kit import HASTE, Asked, Hostile, entry, listing, refused, reply

from fabric.errors import StoreError
from fabric.host.cancel import CancelToken
from fabric.host.progress import unmoved
from fabric.jobs import Blob
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.substituters import Substituters

pytestmark = pytest.mark.usefixtures("without_obstore")


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
