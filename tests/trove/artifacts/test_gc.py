"""The artifacts that `gc` of a store removes and keeps, and the records of use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from children import child_environment
from servers_kit import free_port
from store_kit import Server, blob, key, nginx, step
from waiting import until

from fabric import bounds
from fabric.trove.artifacts import uses
from fabric.trove.artifacts.store import Store

DAY = 86400.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A WebDAV server for one test."""
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        yield server


@pytest.fixture(params=["directory", "webdav"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The URL of a store and the folder of its files."""
    if request.param == "directory":
        return str(tmp_path / "store"), tmp_path / "store"
    server: Server = request.getfixturevalue("server")
    return f"{server.url}/a", server.data / "a"


def age(folder: Path, days: float) -> None:
    """Make all files of a store so many days old."""
    old = time.time() - days * DAY
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (old, old))


def test_gc_does_not_count_reading_as_use(place: tuple[str, Path], tmp_path: Path) -> None:
    store = Store(place[0], tmp_path / "scratch")
    for number in range(5):
        store.put(*step(number, b"data of %d" % number))
    age(place[1], 30)
    assert None not in store.manifests(map(key, range(5)))
    assert store.inspect(key(1))
    assert len(store.has(map(key, range(5)))) == 5
    assert store.read(blob(b"data of 1"))
    planned = store.gc(set(), older_than=7 * DAY, dry_run=True)
    assert store.usage().manifests == 5, "nothing is removed"
    gone = store.gc(set(), older_than=7 * DAY)
    assert gone == planned
    assert (gone.manifests, gone.blobs) == (5, 10)
    assert gone.bytes > 0
    assert store.usage().bytes == 0


def test_gc_keeps_used_artifacts_and_their_dependencies(
    place: tuple[str, Path], tmp_path: Path
) -> None:
    store = Store(place[0], tmp_path / "scratch")
    builds = {1: (), 2: (1,), 3: (2,), 4: (1,), 5: ()}
    for number, needs in builds.items():
        manifest, files = step(number, b"data of %d" % number)
        staged = tuple(map(key, needs))
        store.put(msgspec.structs.replace(manifest, staged=staged), files)
    age(place[1], 30)
    store.use([key(3)])
    store.flush(60)
    other = Store(place[0], tmp_path / "another")
    assert other.gc(set(), older_than=7 * DAY).manifests == 2
    assert other.has(map(key, range(6))) == {key(1), key(2), key(3)}
    assert other.inspect(key(1))


def test_delete_removes_steps_and_the_blobs_that_no_other_names(
    place: tuple[str, Path], tmp_path: Path
) -> None:
    store = Store(place[0], tmp_path / "scratch")
    for number in (1, 2, 3):
        store.put(*step(number, b"data of all", b"data of %d" % number))
    equal, _ = step(4, b"data of all", b"data of 3")
    shared = msgspec.structs.replace(equal, log=step(3)[0].log, origin=key(3))
    assert store.put_equal(shared)
    stray = place[1] / "blobs/ff" / ("f" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of an upload that ended")
    age(place[1], 30)
    planned = store.delete([key(1), key(3)], dry_run=True)
    assert len(store.has(map(key, range(5)))) == 4, "nothing is removed"
    gone = store.delete([key(1), key(3)])
    assert gone == planned
    assert (gone.manifests, gone.blobs, gone.waiting) == (2, 2, 0), "the log and data of 1"
    assert store.has(map(key, range(5))) == {key(2), key(4)}
    assert all(map(store.inspect, (key(2), key(4))))
    assert stray.exists(), "it is for gc"
    assert store.delete([key(1)]).manifests == 0


def test_delete_spares_new_blobs_and_reserved_steps(
    place: tuple[str, Path], tmp_path: Path
) -> None:
    store = Store(place[0], tmp_path / "scratch")
    store.put(*step(1, b"data of 1"))
    with store.reserve([key(1), key(7)]):
        assert Store(place[0], tmp_path / "other").reserved() == {key(1), key(7)}
        assert store.delete([key(1)]).manifests == 0
    assert store.reserved() == set()
    gone = store.delete([key(1)])
    assert (gone.manifests, gone.blobs, gone.waiting) == (1, 0, 2)
    age(place[1], 30)
    assert store.gc(set()).blobs == 2


def test_used_is_the_last_use_of_each_step(place: tuple[str, Path], tmp_path: Path) -> None:
    store = Store(place[0], tmp_path / "scratch")
    for number in (1, 2):
        store.put(*step(number, b"data of %d" % number))
    age(place[1], 30)
    store.use([key(1)])
    store.flush(60)
    (place[1] / "manifests/README").write_text("no manifest")
    days = {name: round((time.time() - at) / DAY) for name, at in store.used().items()}
    assert days == {key(1): 0, key(2): 30}


@pytest.mark.parametrize("killed", [False, True])
def test_gc_keeps_artifacts_reserved_by_a_live_build(
    place: tuple[str, Path], tmp_path: Path, killed: bool
) -> None:
    store = Store(place[0], tmp_path / "scratch")
    for number in (1, 2):
        store.put(*step(number, b"data of %d" % number))
    age(place[1], 30)
    code = f"""
        import sys
        from pathlib import Path
        from store_kit import key
        from fabric.trove.artifacts.store import Store
        with Store({place[0]!r}, Path({str(tmp_path)!r}) / "its").reserve([key(1), key(9)]):
            print(flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
    ) as build:
        assert build.stdin
        assert build.stdout
        build.stdout.readline()
        assert store.gc(set(), dry_run=True).manifests == 1
        assert store.gc(set()).manifests == 1
        assert store.has([key(1), key(2)]) == {key(1)}
        assert store.inspect(key(1)), "its blobs are there"
        if killed:
            build.send_signal(signal.SIGKILL)
        build.stdin.close()
        build.wait()
    if killed:
        age(place[1], 3)  # a remote store cannot know that it is dead
    assert store.gc(set()).manifests == 1
    assert not list((place[1] / "reserved").iterdir())


@pytest.mark.bound("RESERVED")
def test_reservation_on_a_server_expires(server: Server, tmp_path: Path) -> None:
    store = Store(f"{server.url}/a", tmp_path / "scratch")
    store.put(*step(1, b"data"))
    with store.reserve([key(1)]):
        for age_, left in ((bounds.RESERVED - 600, 1), (bounds.RESERVED + 600, 0)):
            age(server.data / "a", age_ / DAY)
            store.gc(set())
            assert store.usage().manifests == left


@pytest.mark.bound("UPLOAD")
def test_gc_keeps_and_counts_blobs_that_an_upload_may_name(server: Server, tmp_path: Path) -> None:
    store = Store(f"{server.url}/a", tmp_path / "scratch")
    store.put(*step(1, b"data"))
    gone = store.gc(set())
    assert (gone.manifests, gone.blobs, gone.blob_bytes) == (1, 0, 0)
    assert (gone.waiting, gone.waiting_bytes) == (2, len(b"data") + len(b"log of 1\n"))
    age(server.data / "a", (bounds.UPLOAD + 600) / DAY)
    gone = store.gc(set())
    assert (gone.blobs, gone.waiting) == (2, 0)


# -- records of use --------------------------------------------------------------------------


def noted(server: Server) -> list[bytes]:
    """The contents of all records of use on the server."""
    return [file.read_bytes() for file in (server.data / "a/uses").glob("*")]


def test_uses_of_a_machine_are_one_object_a_day_sent_once_an_hour(
    server: Server, tmp_path: Path
) -> None:
    first = Store(f"{server.url}/a", tmp_path / "scratch")
    first.use([key(1)])
    until(lambda: [key(1).encode()] == [each.strip() for each in noted(server)])
    first.use([key(2)])
    first.use([key(1), key(2)])
    second = Store(f"{server.url}/a", tmp_path / "scratch")  # another process of this machine
    second.use([key(2), key(3)])
    second.flush(0)
    second.flush(60)
    assert [each.split() for each in noted(server)] == [[key(n).encode() for n in (1, 2, 3)]]
    (file,) = (server.data / "a/uses").iterdir()
    before = file.stat().st_mtime_ns
    second.use([key(1), key(3)])
    second.flush(60)
    assert file.stat().st_mtime_ns == before, "nothing new is noted"
    Store(f"{server.url}/a", tmp_path / "another machine").use([key(1)])
    until(lambda: len(noted(server)) == 2)


def test_uses_are_sent_again_to_an_unreachable_server(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "server"
    folder.mkdir()
    store = Store(f"http://127.0.0.1:{port}/a", tmp_path / "scratch")
    store.use([key(1)])
    store.flush(0.01)
    with nginx(folder, port) as server:
        until(lambda: len(noted(server)) == 1)  # the same request was tried again


def test_uses_cut_short_by_a_killed_process_are_ignored(tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    notes = uses.Uses(tmp_path / "notes", sent.__setitem__)
    notes.note([key(1)])
    notes.flush(60)
    (file,) = (tmp_path / "notes").glob("????-??-??")
    with file.open("ab") as opened:
        opened.write(b"\n" + key(2).encode()[:30])
    notes.note([key(3)])
    notes.flush(60)
    (content,) = sent.values()
    assert uses.keys_in(content) == {key(1).encode(), key(3).encode()}


def test_uses_of_past_days_are_sent_and_removed(tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "2026-01-01").write_text(key(1))
    notes = uses.Uses(folder, sent.__setitem__)
    notes.note([key(2)])
    notes.flush(60)
    assert sorted(path[:16] for path in sent)[0] == "uses/2026-01-01-"
    assert len(list(folder.glob("????-??-??"))) == 1


def test_uses_of_a_future_day_do_not_affect_those_of_today(tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "2999-01-01").write_text(key(1))
    notes = uses.Uses(folder, sent.__setitem__)
    for number in (2, 3):
        notes.note([key(number)])
        notes.flush(60)
    today, then = (uses.keys_in(sent[path]) for path in sorted(sent))
    assert today == {key(2).encode(), key(3).encode()}
    assert then == {key(1).encode()}


@pytest.mark.bound("USES_KEPT")
@pytest.mark.bound("USE_LIST")
def test_uses_that_are_too_old_or_too_long_are_ignored(server: Server, tmp_path: Path) -> None:
    store = Store(f"{server.url}/a", tmp_path / "scratch")
    for number in (1, 2, 3):
        store.put(*step(number, b"data of %d" % number))
    age(server.data / "a", 91)
    folder = server.data / "a/uses"
    folder.mkdir()
    (folder / "fine").write_text(key(1))
    (folder / "long").write_bytes(key(2).encode() + b"\n" * bounds.USE_LIST)
    (folder / "old").write_text(key(3))
    old = time.time() - bounds.USES_KEPT - 600
    os.utime(folder / "old", (old, old))
    assert store.gc(set(), older_than=DAY).manifests == 2
    assert store.has(map(key, (1, 2, 3))) == {key(1)}
    assert sorted(file.name for file in folder.iterdir()) == ["fine", "long"]
