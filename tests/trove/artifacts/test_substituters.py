"""Substituters give steps, and whatever they do costs a bounded time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace
from servers_kit import free_port
from store_kit import key, nginx, step

from fabric import bounds
from fabric.errors import Cancelled
from fabric.host.cancel import CancelToken
from fabric.host.progress import unmoved
from fabric.jobs import LATEST, Artifact, Blob
from fabric.trove.artifacts.backend import Haste
from fabric.trove.artifacts.manifests import apart, blob_path, encode, manifest_path
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.substituters import Substitute, Substituters
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys

#: Seconds that a test waits for a substituter in place of `bounds.SUBSTITUTE_ANSWER`.
ANSWER = 0.6
#: What the machine may need besides; a client that waits too long waits for 5 seconds or more.
SLACK = 4.0

Respond = Callable[[socket.socket, str], None]


class Hostile:
    """An HTTP server that answers a path as the test wants, in a thread for each connection."""

    def __init__(self) -> None:
        self.paths: dict[str, Respond] = {}
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as lines:
            path = lines.readline().split()[1].decode().lstrip("/")
            while lines.readline().strip():
                pass
            self.asked.append(path)
            self.paths.get(path, status("404 Not Found"))(client, path)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def head(size: int | None, code: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {code}", "Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT"]
    lines += ["Connection: close"] + ([f"Content-Length: {size}"] if size is not None else [])
    return "\r\n".join([*lines, "", ""]).encode()


def status(code: str) -> Respond:
    return lambda client, _: client.sendall(head(0, code))


def content(data: bytes) -> Respond:
    return lambda client, _: client.sendall(head(len(data)) + data)


def drip(size: int) -> Respond:
    """A body that comes so slowly that it never ends."""

    def respond(client: socket.socket, _: str) -> None:
        client.sendall(head(size))
        while True:
            client.sendall(b"x")
            time.sleep(0.05)

    return respond


def endless(size: int | None) -> Respond:
    """A body without end; ``size`` is what its head says."""

    def respond(client: socket.socket, _: str) -> None:
        client.sendall(head(size))
        while True:
            client.sendall(b"x" * 65536)

    return respond


def steady(client: socket.socket, _: str) -> None:
    """A body of 5 MB a second that never ends."""
    client.sendall(head(1 << 40))
    while True:
        client.sendall(b"x" * 262_144)
        time.sleep(0.05)


def silent(client: socket.socket, _: str) -> None:
    client.recv(1)


class Scene(NamedTuple):
    """A machine with trusted keys, and hostile servers."""

    top: Path
    keys: TrustedKeys
    evil: Hostile

    def store(self, url: str, named: str = "") -> Store:
        scratch = self.top / f"scratch{named}"
        haste = Haste(bounds.SUBSTITUTE_ANSWER, 5)
        return Store(url, scratch, seal=Seal(self.keys), named="", haste=haste)

    def substituters(self, *urls: str) -> Substituters:
        return Substituters([self.store(url) for url in urls], self.top / "resting")

    def offered(self, *contents: bytes, seconds: float = 1.0) -> tuple[bytes, list[Blob]]:
        """A signed manifest of step 1, and its blobs; the evil server has both as they are."""
        manifest, files = step(1, *contents)
        manifest = replace(manifest, seconds=seconds)
        data = encode(manifest, Seal(self.keys))
        self.evil.paths[manifest_path(manifest.key)] = content(data)
        for blob in apart(manifest):
            file = files[blob.sha256]
            assert isinstance(file, bytes)
            self.evil.paths[blob_path(blob)] = content(file)
        return data, apart(manifest)


class Result(NamedTuple):
    found: Substitute | None
    said: list[str]
    seconds: float


def find(substituters: Substituters, cancel: CancelToken | None = None) -> Result:
    said: list[str] = []
    began = time.monotonic()
    found = substituters.find(key(1), cancel or CancelToken(), said.append, unmoved)
    return Result(found, said, time.monotonic() - began)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(bounds, "SUBSTITUTE_ANSWER", ANSWER)
    keys = TrustedKeys(tmp_path / "keys")
    keys.signer()
    evil = Hostile()
    yield Scene(tmp_path, keys, evil)
    evil.close()


# -- what a good one gives ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a directory", "a server"])
def test_step_is_found_as_it_is(scene: Scene, kind: str) -> None:
    folder = scene.top / "server"
    folder.mkdir()
    with contextlib.ExitStack() as held:
        server = held.enter_context(nginx(folder, free_port()))
        url = f"{server.url}/a" if kind == "a server" else str(server.data / "a")
        manifest, files = step(1, b"x" * 20_000)
        Store(url, scene.top / "theirs", seal=Seal(scene.keys)).put(manifest, files)
        found, said, _ = find(scene.substituters(str(scene.top / "none"), url))
    assert said == []
    assert found is not None
    assert (found.url, found.manifest) == (url, manifest)
    assert found.data == (server.data / "a" / manifest_path(key(1))).read_bytes()
    assert {sha: file.read_bytes() for sha, file in found.files.items() if isinstance(file, Path)}
    ours = Store(str(scene.top / "ours"), scene.top / "scratch", seal=Seal(scene.keys))
    ours.put(found.manifest, found.files, found.data)
    assert ours.inspect(key(1))
    stored = (scene.top / "ours" / manifest_path(key(1))).read_bytes()
    assert stored == found.data, "signatures of others stay valid"


def test_substituters_are_asked_in_order_until_one_has_the_step(scene: Scene) -> None:
    data, _ = scene.offered(b"x" * 9000)
    other = Hostile()
    found, said, _ = find(scene.substituters(other.url, scene.evil.url, other.url))
    assert found is not None
    assert (found.url, found.data, said) == (scene.evil.url, data, [])
    assert other.asked == [manifest_path(key(1))], "the third is not asked"
    other.close()


# -- what a bad one costs ----------------------------------------------------------------------


def deep(scene: Scene) -> None:
    nested = b'{"payload":' + b"[" * 1_000_000
    scene.evil.paths[manifest_path(key(1))] = content(nested)


def deep_inside(scene: Scene) -> None:
    nested = b'{"payload":"", "more":' + b"[" * 1_000_000
    scene.evil.paths[manifest_path(key(1))] = content(nested)


def replayed(scene: Scene) -> None:
    manifest, _ = step(2, b"x")
    scene.evil.paths[manifest_path(key(1))] = content(encode(manifest, Seal(scene.keys)))


def unsigned(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = content(encode(step(1)[0]))


def untrusted(scene: Scene) -> None:
    other = Seal(TrustedKeys(scene.top / "other keys"))
    scene.evil.paths[manifest_path(key(1))] = content(encode(step(1)[0], other))


def changed(scene: Scene) -> None:
    data, _ = scene.offered()
    envelope = json.loads(data)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    scene.evil.paths[manifest_path(key(1))] = content(json.dumps(envelope).encode())


def revoked(scene: Scene) -> None:
    scene.offered()
    TrustedKeys(scene.top / "stolen").signer()
    stolen = scene.keys.directory / "revoked"
    stolen.mkdir()
    (scene.top / "stolen" / "own.pub").rename(stolen / "mallory.pub")
    seal = Seal(TrustedKeys(scene.top / "stolen"))
    scene.evil.paths[manifest_path(key(1))] = content(encode(step(1)[0], seal))


def huge(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = endless(bounds.MANIFEST + 1)


def wrong_digest(scene: Scene) -> None:
    _, [blob, _] = scene.offered(b"x" * 9000)
    scene.evil.paths[blob_path(blob)] = content(b"y" * 9000)


def too_short(scene: Scene) -> None:
    _, [blob, _] = scene.offered(b"x" * 9000)
    scene.evil.paths[blob_path(blob)] = content(b"x" * 8999)


def too_long(scene: Scene) -> None:
    _, [blob, _] = scene.offered(b"x" * 9000)
    scene.evil.paths[blob_path(blob)] = endless(1 << 50)


def no_blob(scene: Scene) -> None:
    _, [blob, _] = scene.offered(b"x" * 9000)
    del scene.evil.paths[blob_path(blob)]


def forbidden(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = status("403 Forbidden")


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (deep, "manifest .* is damaged"),
        (deep_inside, "manifest .* is damaged"),
        (replayed, f"is damaged: it is that of {key(2)}"),
        (unsigned, "its manifest counts as absent: it is not signed"),
        (untrusted, "counts as absent: it is signed with the unknown key"),
        (changed, "counts as absent: its signature of own is wrong"),
        (revoked, "counts as absent: it is signed with the key mallory, which is revoked"),
        (huge, "is damaged: it has 67108865 bytes"),
        (wrong_digest, "is damaged: its digest is"),
        (too_short, "is damaged: it has 8999 bytes instead of 9000"),
        (too_long, "is damaged: it has more bytes instead of 9000"),
        (no_blob, "is damaged: it is not there"),
        (forbidden, "403 Forbidden"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_bad_answer_is_named_and_the_next_is_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, deed: Callable[[Scene], None], said: str
) -> None:
    monkeypatch.setattr(bounds, "SUBSTITUTE_ANSWER", 30)  # none of them is slow, a machine may be
    deed(scene)
    good = str(scene.top / "good")
    manifest, files = step(1, b"z" * 9000)
    Store(good, scene.top / "theirs", seal=Seal(scene.keys)).put(manifest, files)
    both = scene.substituters(scene.evil.url, good)
    for _ in range(2):
        result = find(both)
        assert result.found is not None
        assert result.found.url == good
        [line] = result.said
        assert scene.evil.url in line
        assert re.search(said, line), line
        assert "\n" not in line
    assert scene.evil.asked.count(manifest_path(key(1))) == 2, "it answers, so it does not rest"
    assert not list(scene.top.glob("scratch/fetching-*/*")), "nothing half stays"


def stuck(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = silent


def dripped(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = drip(100_000)


def broken(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = status("500 Internal Server Error")


def without_length(scene: Scene) -> None:
    scene.evil.paths[manifest_path(key(1))] = endless(None)


@pytest.mark.bound("SUBSTITUTE_ANSWER")
@pytest.mark.bound("SUBSTITUTER_REST")
@pytest.mark.parametrize("deed", [stuck, dripped, broken, without_length])
def test_one_that_does_not_answer_rests(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, deed: Callable[[Scene], None]
) -> None:
    deed(scene)
    first = find(scene.substituters(scene.evil.url))
    assert first.found is None
    assert len(first.said) == 1
    assert first.said[0].startswith(scene.evil.url)
    assert first.said[0].endswith("; it is not asked for 300 s")
    assert first.seconds < ANSWER + SLACK
    again = find(scene.substituters(scene.evil.url))
    assert (again.found, again.said) == (None, [])
    assert len(scene.evil.asked) == 1, "another program of the machine does not ask it, either"
    monkeypatch.setattr(bounds, "SUBSTITUTER_REST", 0.2)
    time.sleep(0.25)
    scene.offered(b"x")
    assert find(scene.substituters(scene.evil.url)).found is not None, "it has rested"


def test_one_that_is_away_rests(scene: Scene) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    data, _ = scene.offered(b"x" * 9000)
    both = scene.substituters(away, scene.evil.url)
    found, [line], seconds = find(both)
    assert found is not None
    assert found.data == data
    assert away in line
    assert seconds < ANSWER + SLACK
    assert find(both).said == []


@pytest.mark.bound("SUBSTITUTE_TIME")
@pytest.mark.parametrize(
    ("seconds", "most", "limit"),
    [(0.1, 3600, ANSWER), (1.5, 3600, 1.5), (LATEST, 1.2, 1.2)],
    ids=["quickly built", "as long as building", "for ever"],
)
def test_artifacts_that_come_slowly_are_not_waited_for_longer_than_building_takes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, seconds: float, most: float, limit: float
) -> None:
    monkeypatch.setattr(bounds, "SUBSTITUTE_TIME", most)
    _, [blob, _] = scene.offered(os.urandom(9000), seconds=seconds)
    scene.evil.paths[blob_path(blob)] = drip(9000)
    result = find(scene.substituters(scene.evil.url, scene.evil.url + "/second"))
    assert result.found is None
    assert "the artifacts did not come in the time that building took there" in result.said[0]
    assert limit - 0.1 <= result.seconds < limit + ANSWER + SLACK
    asked = len(scene.evil.asked)
    assert find(scene.substituters(scene.evil.url)).found is None
    assert len(scene.evil.asked) == asked, "it rests"


def late(size: int, seconds: float) -> Respond:
    """A wrong body that comes late."""

    def respond(client: socket.socket, _: str) -> None:
        client.sendall(head(size))
        time.sleep(seconds)
        client.sendall(b"w" * size)

    return respond


def test_several_slow_ones_have_one_time_together(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SUBSTITUTE_ANSWER", 4)  # the slow ones take 1 s each
    slow = [Hostile() for _ in range(4)]
    _, [blob, _] = scene.offered(os.urandom(9000), seconds=6.0)
    responses = *[late(9000, 1.0)] * 3, drip(9000)
    for one, response in zip(slow, responses, strict=True):
        one.paths = {**scene.evil.paths, blob_path(blob): response}
    stores = scene.substituters(*(one.url for one in slow), *(one.url for one in slow))
    result = find(stores)
    assert result.found is None
    assert ["its digest is" in line for line in result.said] == [True] * 3 + [False]
    assert 5.9 <= result.seconds < 6.0 + 2.6, "not 6 seconds for the last alone"
    assert [len(one.asked) for one in slow] == [2] * 4, "no time is left to ask them again"
    for one in slow:
        one.close()


@pytest.mark.parametrize("what", ["manifest", "blob"])
def test_waiting_for_one_can_be_cancelled(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(bounds, "SUBSTITUTE_ANSWER", 30)
    _, [blob, _] = scene.offered(os.urandom(9000), seconds=60.0)
    path = manifest_path(key(1)) if what == "manifest" else blob_path(blob)
    scene.evil.paths[path] = drip(9000)
    cancel = CancelToken()
    threading.Timer(0.4, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        find(scene.substituters(scene.evil.url), cancel)
    assert time.monotonic() - began < 0.4 + SLACK


def waiting() -> bool:
    """Whether a thread still waits for a substituter."""
    return any(one.name == "substituter" for one in threading.enumerate())


def test_download_that_nobody_waits_for_ends(scene: Scene) -> None:
    manifest, _ = step(1, b"x" * 9000)
    blob = Blob("d" * 64, 1 << 40)
    manifest = replace(manifest, artifacts=(Artifact("a-0", blob),), log=None, seconds=0.1)
    scene.evil.paths[manifest_path(key(1))] = content(encode(manifest, Seal(scene.keys)))
    scene.evil.paths[blob_path(blob)] = steady
    assert find(scene.substituters(scene.evil.url)).found is None
    until = time.monotonic() + 2.5  # the client has 5
    while waiting():
        assert time.monotonic() < until, "it goes on"
        time.sleep(0.05)


def test_client_gives_up_by_itself(scene: Scene) -> None:
    """A thread that nobody waits for any more ends, and leaves nothing."""
    _, [blob, _] = scene.offered(os.urandom(9000), seconds=0.1)
    scene.evil.paths[blob_path(blob)] = drip(9000)
    before = threading.active_count()
    assert find(scene.substituters(scene.evil.url)).found is None
    assert waiting()
    until = time.monotonic() + 10  # as `Haste` says, and more
    while waiting():
        assert time.monotonic() < until, "the client goes on for ever"
        time.sleep(0.1)
    assert threading.active_count() <= before + 2
    assert not list(scene.top.glob("scratch/fetching-*/*"))
