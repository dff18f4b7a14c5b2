"""Without obstore: lists of folders from a WebDAV server that is broken or hostile."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from store_kit import key
from webdav_kit import DATE, FOLDER, MIB, Asked, Hostile, entry, listing, refused, reply

pytestmark = pytest.mark.usefixtures("without_obstore")


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
