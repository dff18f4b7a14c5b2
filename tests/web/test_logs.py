"""What the page of a log reads, from the real fabric-web beside a real broker."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from log_colors import sheet
from waiting import until
from web_kit import SIGNED, Response, Site
from wire_kit import FakeWorker, key_of

from fabric import bounds
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.store import Store
from fabric.web import logs

LINES = b"".join(b"line %d of many\n" % n for n in range(1, 200_001))


def get(site: Site, name: str, what: str = "", **query: Any) -> Response:
    headers = query.pop("headers", {})
    return site.web.get(f"/steps/{key_of(name)}/log{what}?{urlencode(query)}", **headers)


def info(site: Site, name: str, **query: Any) -> Any:
    answer = get(site, name, format="json", **query)
    assert answer.status == 200, answer
    return answer.json


def put_log(site: Site, name: str, log: bytes) -> str:
    """Store a step with this log, as if it was built long ago; returns its key."""
    directory = site.farm.directory
    blob = Blob.of(log)
    manifest = Manifest(
        key=key_of(name), kind="chunk", name=name, arch="x86_64", artifacts=(), log=blob,
        log_name=f"build-step-{name}.log",
    )  # fmt: skip
    store = Store(str(directory / "store"), directory / "scratch")
    store.put(manifest, {blob.sha256: log})
    return manifest.key


@pytest.fixture
def old(site: Site) -> Site:
    """A site whose store has a log."""
    put_log(site, "old", LINES)
    return site


@contextmanager
def streaming(site: Site, name: str, **query: Any) -> Iterator[http.client.HTTPResponse]:
    """The open stream of a log."""
    connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=60)
    path = f"/steps/{key_of(name)}/log/stream?{urlencode(query)}"
    connection.request("GET", path, headers=SIGNED)
    response = connection.getresponse()
    assert response.status == 200
    yield response
    response.close()
    connection.close()


# -- ranges and rows -----------------------------------------------------------------------


def test_raw_log_as_a_whole_and_in_ranges(old: Site) -> None:
    whole = get(old, "old", "/raw")
    assert whole.text.encode() == LINES
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert "filename*=UTF-8''build-step-old.log" in whole.headers["content-disposition"]
    assert whole.headers["content-disposition"].startswith("inline")
    file = get(old, "old", "/raw", download="true")
    assert file.headers["content-disposition"].startswith("attachment")
    assert file.headers["content-length"] == str(len(LINES))
    for asked, begin, end in (
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, len(LINES)),
        ("bytes=-70000", len(LINES) - 70_000, len(LINES)),
        (f"bytes={len(LINES) - 5}-{len(LINES) + 5}", len(LINES) - 5, len(LINES)),
    ):
        part = get(old, "old", "/raw", headers={"range": asked})
        assert (part.status, part.text.encode()) == (206, LINES[begin:end])
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(LINES)}"
        assert part.headers["content-length"] == str(end - begin)
    beyond = get(old, "old", "/raw", headers={"range": f"bytes={len(LINES)}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(LINES)}")
    odd = get(old, "old", "/raw", headers={"range": "lines=1-2"})
    assert (odd.status, len(odd.text)) == (200, len(LINES))


def test_rows_have_their_lines(old: Site) -> None:
    until(lambda: info(old, "old")["whole"])
    tail = get(old, "old", "/rows")
    assert tail.text.endswith("line 200000 of many\n")
    assert tail.text.startswith(f"line {tail.headers['log-line']} of many\n")
    assert tail.headers["log-size"] == str(len(LINES))
    assert (tail.headers["log-begins"], tail.headers["log-ended"]) == ("1", "1")
    line = get(old, "old", "/rows", line=123_456)
    assert line.text.startswith("line 123456 of many\n")
    assert line.headers["log-line"] == "123456"
    before = get(old, "old", "/rows", to=line.headers["log-from"])
    assert before.text.endswith("line 123455 of many\n")
    assert before.text.startswith(f"line {before.headers['log-line']} of many\n")
    after = get(old, "old", "/rows", **{"from": 0}, length=1)
    assert after.text.startswith("line 1 of many\nline 2")
    none = get(old, "old", "/rows", line=300_000)
    assert (none.status, none.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "this log has only 200,000 lines" in none.text


def test_view_has_the_last_lines_and_facts(old: Site) -> None:
    until(lambda: info(old, "old")["whole"])
    view = info(old, "old", tail=2)
    assert view["tail"] == ["line 199999 of many", "line 200000 of many"]
    assert (view["name"], view["state"], view["file"]) == ("old", "done", "build-step-old.log")
    assert (view["lines"], view["size"]) == (200_000, len(LINES))
    assert (view["ended"], view["message"], view["attempts"]) == (True, "", [])


@pytest.mark.parametrize(
    ("what", "query", "error"),
    [
        ("", {"fence": -1}, "Expected `int` >= 0 - at `$.fence`"),
        ("", {"tail": 1001}, "Expected `int` <= 1000 - at `$.tail`"),
        ("", {"other": 1}, "Object contains unknown field `other`"),
        ("/rows", {"from": "x"}, "Expected `int | null`, got `str` - at `$.from`"),
        ("/rows", {"length": bounds.LOG_RANGE + 1}, "Expected `int` <= 1048576"),
        ("/raw", {"download": "perhaps"}, "Expected `bool`, got `str` - at `$.download`"),
        ("/search", {}, "there is no text to search for"),
        ("/search", {"q": "(", "regex": "true"}, "not a regular expression (RE2): missing )"),
    ],
)
def test_mistakes_in_addresses_are_named(
    old: Site, what: str, query: dict[str, object], error: str
) -> None:
    answer = get(old, "old", what, **query, headers={"accept": "application/json"})
    assert answer.status == 400
    assert answer.json["error"].startswith(error)


def test_logs_that_do_not_exist(site: Site) -> None:
    for path, error in (
        ("/steps/zlib/log", "zlib: this is not the key of a step"),
        (f"/steps/{key_of('x')}/log/raw", f"there is no log of step {key_of('x')[:12]}: it has"),
        (f"/steps/{key_of('x')}/log?fence=7", "there is no log of this attempt at step"),
        (f"/steps/{key_of('x')}/log", f"'{key_of('x')}': no such build or step"),
    ):
        answer = site.web.get(path, accept="application/json")
        assert answer.json["error"].startswith(error)
        assert answer.status == (502 if "no such build" in error else 404)
    assert site.web.get(f"/steps/{key_of('x')}/log/raw", "POST").status == 405


# -- logs that grow ------------------------------------------------------------------------


def test_stream_brings_bytes_as_they_come(site: Site) -> None:
    worker = site.worker("amber", lambda _: b"one\ntwo\nthree\n")
    site.build("hello")
    worker.prints("hello", b"one\n")
    until(lambda: b"one" in get(site, "hello", "/rows").text.encode())
    assert info(site, "hello")["state"] == "running"
    with streaming(site, "hello") as stream:
        assert stream.read(4) == b"one\n"
        worker.prints("hello", b"two\n")
        assert stream.read(4) == b"two\n"
        worker.prints("hello", b"three\n")
        worker.release("hello")
        assert stream.read() == b"three\n", "it ends with the log"
    view = info(site, "hello")
    assert (view["ended"], view["whole"], view["message"]) == (True, True, "")
    with streaming(site, "hello", **{"from": 8}) as stream:
        assert stream.read() == b"three\n"


def test_who_comes_late_gets_everything(site: Site) -> None:
    """Pieces were published before anybody looked, and more come while the first are read."""
    worker = site.worker("amber", lambda _: LINES)
    site.build("hello")
    half = len(LINES) // 2
    worker.prints("hello", LINES[:half])
    time.sleep(1.0)
    with streaming(site, "hello") as stream:
        begun = stream.read(1000)
        worker.prints("hello", LINES[half:])
        worker.release("hello")
        rest = stream.read()
    assert LINES.startswith(begun + rest), "it ends early if it is far behind"
    until(lambda: info(site, "hello")["whole"])
    assert get(site, "hello", "/raw").text.encode() == LINES


def test_viewer_far_behind_is_sent_to_the_end(site: Site) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", LINES)
    until(lambda: info(site, "hello")["size"] == len(LINES))
    with streaming(site, "hello") as stream:
        assert stream.read() == b""
    with streaming(site, "hello", **{"from": len(LINES) - logs.LAG}) as stream:
        assert stream.read(logs.LAG) == LINES[-logs.LAG :]


def test_lost_pieces_are_read_as_ranges(site: Site) -> None:
    """The broker requests the log at its end."""
    worker = site.worker("amber", lambda _: LINES, lose_logs=True)
    site.build("hello")
    worker.release("hello")
    until(lambda: info(site, "hello")["state"] == "done")
    assert get(site, "hello", "/raw").text.encode() == LINES


def test_failed_attempt_has_its_log(site: Site) -> None:
    def fails(_: str) -> bytes:
        error = FakeWorker.Fails("make: *** [all] Error 2")
        error.log = b"one\ntwo\n"
        raise error

    worker = site.worker("amber", fails)
    site.build("hello")
    worker.prints("hello", b"one\n")
    until(lambda: info(site, "hello")["lines"] == 1)
    worker.release("hello")
    until(lambda: info(site, "hello")["state"] == "failed")
    until(lambda: info(site, "hello")["ended"])
    view = info(site, "hello")
    assert (view["tail"], view["whole"]) == (["one", "two"], True)
    assert view["message"] == "make: *** [all] Error 2"


def test_newer_attempt_is_announced(site: Site) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", b"the first\n")
    first = until(lambda: info(site, "hello")["lines"] and info(site, "hello"))
    worker.stop()  # it is lost after the lease
    second = site.worker("basil")
    second.prints("hello", b"the second\n")
    newer = until(lambda: info(site, "hello", fence=first["fence"])["newer"])
    answer = site.web.get(newer + "&format=json").json
    assert int(answer["fence"]) > int(first["fence"])
    until(lambda: info(site, "hello")["tail"] == ["the second"])
    old = info(site, "hello", fence=first["fence"])
    assert (old["tail"], old["message"]) == (["the first"], "its worker is lost, and may come back")
    assert [one["worker"] for one in old["attempts"]] == ["amber", "basil"]


def test_step_that_waits_has_a_page(site: Site) -> None:
    site.build("hello")
    until(lambda: get(site, "hello").status == 200)
    until(lambda: "no worker" in info(site, "hello")["message"])
    page, view = get(site, "hello"), info(site, "hello")
    assert (view["state"], view["fence"], view["size"]) == ("waiting", "0", 0)
    assert 'data-state="waiting"' in page.text


def test_log_goes_on_when_the_broker_comes_back(site: Site) -> None:
    worker = site.worker("amber", reconnect=3000)  # the page is there before
    site.build("hello")
    worker.prints("hello", b"one\n")
    fence = until(lambda: info(site, "hello")["lines"] and info(site, "hello")["fence"])
    site.farm.kill()
    view = until(lambda: (one := info(site, "hello", fence=fence))["message"] and one)
    assert "cannot be reached" in view["message"]
    assert view["tail"] == ["one"], "what is here is shown"
    with streaming(site, "hello", fence=fence) as stream:
        assert stream.read(4) == b"one\n"
        site.farm.start()
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(0.3):  # the first ones are lost: the worker is not connected
                worker.prints("hello", b"two\n")

        printing = threading.Thread(target=go_on)
        printing.start()
        assert stream.read(8) == b"two\ntwo\n"
        over.set()
        printing.join()
    assert info(site, "hello", fence=fence)["message"] == ""


def test_stored_log_is_read_while_the_broker_is_away(old: Site) -> None:
    old.farm.kill()
    until(lambda: info(old, "old")["whole"])
    assert get(old, "old", "/raw").text.encode() == LINES


# -- search --------------------------------------------------------------------------------


def test_search_in_all_of_a_log(old: Site) -> None:
    found = get(old, "old", "/search", q="LINE 150000 ").json
    offset = LINES.index(b"line 150000 ")
    assert found == {
        "matches": [
            {"at": offset, "line": 150_000, "text": "line 150000 of many", "found": "line 150000 "}
        ],
        "next": -1,
    }
    assert get(old, "old", "/search", q="LINE 150000 ", case="true").json["matches"] == []
    found = get(old, "old", "/search", q="^line .*99999", regex="true").json
    assert [match["line"] for match in found["matches"]] == [99_999, 199_999]
    found = get(old, "old", "/search", q="many").json
    assert len(found["matches"]) == logs.MATCHES
    more = get(old, "old", "/search", q="many", **{"from": found["next"]}).json
    assert more["matches"][0]["line"] == logs.MATCHES + 1


# -- bounds and hostile logs ---------------------------------------------------------------


HOSTILE = [
    b"<script>alert(1)</script><img src=x onerror=alert(1)>\n",
    b"\x1b]0;title\x07\x1b]52;c;cm0gLXJmIC8=\x07\x1b[2J\x1bP$q\x1b\\",
    b"\0\0\0\xff\xfe\xc3\n",
    "\u202egnp.exe\u2066\n".encode(),
    b"\r" * 1_000_000 + b"\n",
    b"x" * 10_000_000 + b"\n",
    ("\x90" * 500_000).encode() + b"\n",
    b"the end\n",
]


def test_hostile_log_is_text(site: Site) -> None:
    put_log(site, "bad", b"".join(HOSTILE))
    until(lambda: info(site, "bad")["whole"])
    raw = get(site, "bad", "/raw", headers={"range": "bytes=0-99"})
    assert raw.text.startswith("<script>")
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    assert raw.headers["content-security-policy"].startswith("default-src 'none'; ")
    page = get(site, "bad")
    assert page.status == 200
    assert "<script>alert" not in page.text
    assert info(site, "bad")["tail"][-1] == "the end"
    began = time.monotonic()
    answer = get(site, "bad", "/rows", **{"from": 5_000_000})
    assert set(answer.text) == {"x"}
    assert answer.headers["log-begins"] == "0"
    assert len(answer.text) < 2 * logs.ROWS
    assert get(site, "bad", "/search", q="the end").json["matches"][0]["line"] == len(HOSTILE) - 1
    assert time.monotonic() - began < 20


@pytest.mark.bound("WEB_LOGS")
def test_copies_of_logs_are_bounded(site: Site) -> None:
    """Logs that nobody looks at make room; while all are looked at, no more is shown."""
    for n in range(bounds.WEB_LOGS + 1):
        put_log(site, f"step-{n}", b"%d\n" % n)
        assert info(site, f"step-{n}")["tail"] == [str(n)]
    assert info(site, "step-0")["tail"] == ["0"]


@pytest.mark.bound("WEB_SEARCHES")
def test_searches_take_turns(site: Site) -> None:
    put_log(site, "big", b"abcdefgh ijklmnop qrstuvwxyz\n" * 1_500_000)
    until(lambda: info(site, "big")["whole"])
    statuses: list[int] = []

    def search() -> None:
        answer = get(site, "big", "/search", q=r"([a-z]+ ?)+[0-9]$", regex="true")
        statuses.append(answer.status)

    threads = [threading.Thread(target=search) for _ in range(bounds.WEB_SEARCHES + 20)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert get(site, "big", "/rows").status == 200
    assert time.monotonic() - began < 5, "other pages do not wait for searches"
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 503}


def test_colors_are_made_by_the_program() -> None:
    file = Path(logs.__file__).parent / "static/log-colors.css"
    assert file.read_text() == sheet(), "run: python tests/web/log_colors.py"


def test_copies_end_with_the_program(old: Site) -> None:
    """The files have no names."""
    until(lambda: info(old, "old")["whole"])
    folder = old.web.directory / "web-cache/web"
    assert list(folder.iterdir()) == []
    began = time.monotonic()
    old.web.child.send_signal(signal.SIGTERM)
    assert old.web.child.wait(10) == 0
    assert time.monotonic() - began < 5
    assert json.dumps(old.web.said).count("Traceback") == 0
