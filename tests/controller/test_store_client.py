"""The threads that query the store."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import msgspec
import pytest
from msgspec import msgpack
from waiting import until

from fabric import bounds
from fabric.controller.store_client import StoreClient
from fabric.errors import DamagedError, StoreError
from fabric.jobs import Artifact, Blob, Job, Manifest, Staged
from fabric.scheduling.events import (
    CompareStore,
    QueryStore,
    Result,
    StoreAnswered,
    StoreCompared,
    StoreFailed,
    StoreInspected,
)
from fabric.trove.artifacts.countersigned import countersigned
from fabric.trove.artifacts.manifests import digest_of
from fabric.trove.artifacts.store import Store
from fabric.trust.countersignature import Countersignature
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys
from fabric.wire.messages import LogPiece, LogRead, Rejected, StepSpec

LOG = b"a line\n" * 100


def answers_of(
    client: StoreClient, number: int
) -> list[StoreAnswered | StoreCompared | StoreFailed | StoreInspected]:
    """The next ``number`` answers."""
    found: list[StoreAnswered | StoreCompared | StoreFailed | StoreInspected] = []

    def enough() -> bool:
        found.extend(client.answers())
        return len(found) >= number

    until(enough)
    return found


def stored(tmp_path: Path, *keys: str) -> Store:
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    digest = hashlib.sha256(LOG).hexdigest()
    for key in keys:
        log = Blob(digest, len(LOG))
        store.put(
            Manifest(key=key, kind="chunk", name="c", arch="x86_64", artifacts=(), log=log),
            {digest: LOG},
        )
    return store


def test_store_client_answers_queries(tmp_path: Path) -> None:
    store = stored(tmp_path, "a" * 64, "b" * 64)
    woken = threading.Event()
    client = StoreClient(lambda: store, woken.set)
    client.query([QueryStore(1, ("a" * 64, "c" * 64))])
    client.query([QueryStore(2, ("b" * 64,))])
    answers = answers_of(client, 2)
    assert woken.is_set()
    assert answers == [
        StoreAnswered(1, frozenset({"a" * 64})),
        StoreAnswered(2, frozenset({"b" * 64})),
    ]
    client.close()


def test_results_of_attempts_are_countersigned_and_so_are_equal_steps(tmp_path: Path) -> None:
    own, worker = TrustedKeys(tmp_path / "own"), TrustedKeys(tmp_path / "worker")
    for one, other, name in ((own, worker, "w1"), (worker, own, "controller")):
        other.signer()
        one.trust(other.directory / "own.pub", name)

    def opened(keys: TrustedKeys = own) -> Store:
        return Store(str(tmp_path / "store"), tmp_path / "scratch", seal=Seal(keys))

    def chunk(letter: str, below: str) -> Job:
        staged = (Staged(below * 64, "low"),)
        return Job(
            key=letter * 64, kind="chunk", name="c", arch="x", log="build-step-c.log",
            artifacts=("c-misc",), recipe="1" * 64, staged=staged,
        )  # fmt: skip

    blob = Blob.of(b"content")
    for letter in "abcd":
        below = () if letter in "bc" else ("b" * 64,)
        artifacts = (Artifact("c-misc", blob),)
        manifest = Manifest(
            key=letter * 64, kind="chunk", name="c", arch="x", artifacts=artifacts, staged=below
        )
        assert opened(worker).put(manifest, {})
    spec = StepSpec("a" * 64, "c", "chunk", "x", msgspec.Raw(msgpack.encode(chunk("a", "b"))))
    known = opened().manifest("a" * 64)
    assert known is not None
    results = (
        Result("a" * 64, 5, "w1", digest_of(known)),
        Result("d" * 64, 6, "w1", "e" * 64),  # not what the store has
        Result("f" * 64, 7, "w1", "e" * 64),  # not in the store
    )
    keys = ("a" * 64, "d" * 64, "f" * 64)
    without_keys = StoreClient(opened, lambda: None)  # any peer may use the name w1
    without_keys.query([QueryStore(1, keys, (spec,), results)])
    answers_of(without_keys, 1)
    without_keys.close()  # writes the countersignatures of verified steps first
    assert countersigned(opened(worker), known) is None

    client = StoreClient(opened, lambda: None, countersigns=True)
    client.query([QueryStore(1, keys, (spec,), results)])
    [answer] = answers_of(client, 1)
    assert isinstance(answer, StoreAnswered)
    until(lambda: countersigned(opened(worker), known) is not None)
    found = countersigned(opened(worker), known)
    assert found is not None
    assert found.what == Countersignature("a" * 64, digest_of(known), "w1", 5)

    equal = chunk("e", "c")
    until(lambda: (tmp_path / "store/hints").is_dir())
    step = StepSpec(equal.key, "c", "chunk", "x", msgspec.Raw(msgpack.encode(equal)))

    def compared() -> bool:
        client.query([CompareStore(2, (step,))])
        [answer] = answers_of(client, 1)
        return isinstance(answer, StoreCompared) and equal.key in answer.equal

    until(compared, what="the hint")
    client.close()
    same = opened(worker).manifest(equal.key)
    assert same is not None
    found = countersigned(opened(worker), same)
    assert found is not None
    assert found.what.origin == "a" * 64
    assert len(list((tmp_path / "store/countersigned").iterdir())) == 2


def test_store_client_combines_waiting_queries(tmp_path: Path) -> None:
    store = stored(tmp_path)
    asked: list[list[str]] = []
    gate = threading.Event()

    class Watched(Store):
        def has(self, keys):  # type: ignore[no-untyped-def]
            asked.append(list(keys))
            gate.wait(10.0)
            return super().has(keys)

    client = StoreClient(lambda: Watched(store.url, tmp_path / "scratch"), lambda: None)
    client.query([QueryStore(1, ("a" * 64,))])
    until(lambda: len(asked) == 1)
    for n in range(2, 10):
        client.query([QueryStore(n, ("b" * 64, "c" * 64))])
    gate.set()
    answers_of(client, 9)
    assert asked == [["a" * 64], ["b" * 64, "c" * 64]]
    client.close()


def test_store_client_answers_failures_and_reopens_the_store(tmp_path: Path) -> None:
    store = stored(tmp_path, "a" * 64)
    tries = []

    def opened() -> Store:
        tries.append(1)
        if len(tries) == 1:
            raise StoreError("no route to host")
        return store

    client = StoreClient(opened, lambda: None)
    client.query([QueryStore(1, ("a" * 64,))])
    answers = answers_of(client, 1)
    client.query([QueryStore(2, ("a" * 64,))])
    answers += answers_of(client, 1)
    assert answers == [StoreFailed(1, "no route to host"), StoreAnswered(2, frozenset({"a" * 64}))]
    client.close()


def test_store_client_reads_logs(tmp_path: Path) -> None:
    store = stored(tmp_path, "a" * 64)
    client = StoreClient(lambda: store, lambda: None)
    for offset, length in ((0, 7), (7, 10**9), (10**9, 5)):
        client.read_log("m", b"peer", LogRead("a" * 64, 5, offset, length))
    client.read_log("m", b"other", LogRead("b" * 64, 1, 0, 10))
    found: list[tuple[bytes, LogPiece | Rejected]] = []

    def all_four() -> bool:
        found.extend(client.pieces())
        return len(found) == 4

    until(all_four)
    assert [peer for peer, _ in found] == [b"peer"] * 3 + [b"other"]
    data = [piece.data for _, piece in found[:3] if isinstance(piece, LogPiece)]
    assert data == [b"a line\n", LOG[7:], b""]
    assert isinstance(found[3][1], Rejected)
    client.close()


class Slow(Store):
    """A store that reads a log when the test allows it."""

    def __init__(self, store: Store, scratch: Path) -> None:
        super().__init__(store.url, scratch)
        self.gate = threading.Event()

    def read(self, *args, **more):  # type: ignore[no-untyped-def]
        self.gate.wait(20.0)
        return super().read(*args, **more)


def test_store_client_does_not_report_an_unreadable_log_as_gone(tmp_path: Path) -> None:
    store = stored(tmp_path, "a" * 64, "b" * 64)
    faults = [StoreError("no route to host"), DamagedError("the blob is gone")]

    class Faulty(Store):
        def read(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
            if faults:
                raise faults.pop(0)
            return super().read(blob, offset, length)

    client = StoreClient(lambda: Faulty(store.url, tmp_path / "scratch"), lambda: None)
    found: list[LogPiece | Rejected] = []

    def all_found() -> bool:
        found.extend(piece for _, piece in client.pieces())
        return len(found) == 3

    for n in range(3):
        client.read_log("m", b"peer", LogRead("a" * 64, 1, n, 6))
    until(all_found)
    assert found == [
        Rejected("a" * 64, "not-now", "its log cannot be read: no route to host"),
        Rejected("a" * 64, "no-log", "its log cannot be read: the blob is gone"),
        LogPiece("a" * 64, 1, 2, b"line\na", len(LOG), hashlib.sha256(LOG).hexdigest(), True),
    ]
    client.close()


def test_store_client_queries_do_not_wait_for_logs(tmp_path: Path) -> None:
    store = Slow(stored(tmp_path, "a" * 64), tmp_path / "scratch")
    client = StoreClient(lambda: store, lambda: None)
    for n in range(100):
        client.read_log("m", b"peer", LogRead("a" * 64, 1, n, 1))
    client.query([QueryStore(1, ("a" * 64,))])
    assert answers_of(client, 1) == [StoreAnswered(1, frozenset({"a" * 64}))]
    store.gate.set()
    client.close()


@pytest.mark.bound("LOG_READS")
def test_store_client_log_readers_take_turns(tmp_path: Path) -> None:
    store = Slow(stored(tmp_path, "a" * 64), tmp_path / "scratch")
    client = StoreClient(lambda: store, lambda: None)
    for _ in range(2):  # a waiting read is not queued again
        for n in range(bounds.LOG_READS + 50):
            client.read_log("greedy", b"peer", LogRead("a" * 64, 1, n, 1))
    client.read_log("modest", b"other", LogRead("a" * 64, 1, 0, 1))
    store.gate.set()
    found: list[bytes] = []

    def all_of_them() -> bool:
        found.extend(peer for peer, _ in client.pieces())
        return len(found) >= bounds.LOG_READS + 1

    until(all_of_them)
    assert b"other" in found[:3]
    assert found.count(b"peer") <= bounds.LOG_READS + 1, "and one that is read already"
    client.close()


def test_store_client_closes_without_waiting_for_a_store(tmp_path: Path) -> None:
    gate = threading.Event()

    def opened() -> Store:
        gate.wait(10.0)
        return stored(tmp_path)

    client = StoreClient(opened, lambda: None)
    client.query([QueryStore(1, ("a" * 64,))])
    client.close()
    gate.set()


def test_store_client_inspection_forgets_damaged_artifacts(tmp_path: Path) -> None:
    whole, spoilt, torn, absent = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    store = stored(tmp_path, whole, torn)
    other = hashlib.sha256(b"other").hexdigest()
    log = Blob(other, 5)
    store.put(
        Manifest(key=spoilt, kind="chunk", name="c", arch="x86_64", artifacts=(), log=log),
        {other: b"other"},
    )
    [file] = (tmp_path / "store").rglob(other)
    file.chmod(0o644)
    file.write_bytes(b"xther")
    manifest = tmp_path / "store" / "manifests" / torn
    manifest.chmod(0o644)
    manifest.write_text("{")
    woken: list[None] = []
    client = StoreClient(
        lambda: Store(str(tmp_path / "store"), tmp_path), lambda: woken.append(None)
    )
    client.inspect((whole, spoilt, torn, absent))
    assert answers_of(client, 1) == [StoreInspected(frozenset({spoilt, torn, absent}))]
    assert woken
    assert store.has([whole, spoilt, torn]) == {whole}
    client.close()


def test_store_client_inspection_without_an_answer_forgets_nothing() -> None:
    def fail() -> Store:
        raise StoreError("no")

    client = StoreClient(fail, lambda: None)
    client.inspect(("a" * 64,))
    assert answers_of(client, 1) == [StoreInspected(frozenset(), "no")]
    client.close()
