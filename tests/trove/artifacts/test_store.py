"""The artifact store in a directory, over WebDAV and in S3 keeps and verifies its contents."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from servers_kit import free_port
from store_kit import LISTED, blob, key, step

from fabric.errors import DamagedError, StoreError
from fabric.jobs import SMALL, Artifact, Blob
from fabric.trove.artifacts import remote
from fabric.trove.artifacts.store import Store

BIG = os.urandom(3 * 1024 * 1024)
DAY = 86400.0


# -- every kind of store ---------------------------------------------------------------------


def test_store_gives_back_its_artifacts(store: Store, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(BIG)
    manifest, files = step(1, b"small", BIG)
    files[blob(BIG).sha256] = big
    assert store.has([key(1), key(2)]) == set()
    assert store.manifest(key(1)) is None

    store.put(manifest, files)

    assert store.has([key(1), key(2)]) == {key(1)}
    assert store.manifest(key(1)) == manifest
    assert store.read(blob(b"small")) == b"small"
    assert store.read(blob(BIG), 1000, 10) == BIG[1000:1010]
    assert store.read(blob(BIG), len(BIG) - 5) == BIG[-5:]
    assert store.read(blob(BIG), len(BIG) - 5, 100) == BIG[-5:]
    assert store.read(blob(BIG), len(BIG), 100) == b""
    store.fetch(blob(BIG), tmp_path / "out" / "copy")
    assert (tmp_path / "out" / "copy").read_bytes() == BIG
    assert store.path(blob(BIG)).read_bytes() == BIG
    assert store.path(blob(BIG)).read_bytes() == BIG


@pytest.mark.parametrize("store", LISTED, indirect=True)
def test_store_tells_what_it_has(store: Store) -> None:
    store.put(*step(1, b"small", BIG))
    assert list(store.keys()) == [key(1)]
    usage = store.usage()
    assert (usage.manifests, usage.blobs) == (1, 3)
    assert usage.bytes > len(BIG)
    one = msgspec.structs.replace(step(2)[0], log=Blob.of(b"log"))
    store.put(one, {})
    assert store.usage().blobs == 3, "a small one is in its manifest"


def test_blob_that_is_small_is_in_the_manifest(store: Store, tmp_path: Path) -> None:
    manifest = step(1)[0]
    small, log = Blob.of(b"s" * SMALL), Blob.of(b"log")
    manifest = msgspec.structs.replace(manifest, artifacts=(Artifact("a", small),), log=log)
    store.put(manifest, {})
    kept = store.manifest(key(1))
    assert kept == manifest
    [one, _] = kept.blobs()
    assert store.read(one) == b"".join(store.stream(one)) == b"s" * SMALL
    assert store.read(one, SMALL - 2) == store.read(one, 5, 2) == b"ss"
    with store.open(one) as file:
        assert file.read() == b"s" * SMALL
    store.fetch(one, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == store.path(one).read_bytes() == b"s" * SMALL
    assert store.inspect(key(1))
    assert Blob.of(b"s" * (SMALL + 1)).content is None


def test_blob_that_is_small_is_verified(store: Store) -> None:
    manifest = step(1)[0]
    wrong = msgspec.structs.replace(Blob.of(b"right"), content=b"wrong")
    with pytest.raises(StoreError, match="the file changed after it was made"):
        store.put(msgspec.structs.replace(manifest, log=wrong), {})
    for use in (store.read, store.path, store.open, lambda blob: list(store.stream(blob))):
        with pytest.raises(DamagedError, match="its digest is"):
            use(wrong)
    with pytest.raises(DamagedError) as caught:
        store.open(wrong, key(1))
    assert caught.value.keys == (key(1),)


def test_manifest_of_a_key_is_the_first_one(store: Store) -> None:
    first, files = step(1, b"first")
    store.put(first, files)
    _, others = step(1, b"second")
    second = step(1, b"second")[0]
    store.put(second, others)
    assert store.manifest(key(1)) == first


def test_blob_that_is_missing_is_damage(store: Store) -> None:
    absent = Blob("ab" * 32, 3)
    with pytest.raises(DamagedError, match="it is not there"):
        store.read(absent)
    with pytest.raises(DamagedError, match=absent.sha256) as caught:
        store.path(absent, key(1))
    assert caught.value.keys == (key(1),)


def test_put_verifies_files_against_the_manifest(store: Store, tmp_path: Path) -> None:
    manifest, files = step(1, b"content")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"CONTENT")
    with pytest.raises(StoreError, match="was not given"):
        store.put(manifest, {})
    with pytest.raises(StoreError, match="the file changed after it was made"):
        store.put(manifest, {**files, blob(b"content").sha256: wrong})
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        store.put(manifest, {**files, blob(b"content").sha256: tmp_path / "nothing"})
    assert store.has([key(1)]) == set()


@pytest.mark.parametrize("store", LISTED, indirect=True)
def test_gc_removes_old_and_removed_artifacts(store: Store) -> None:
    shared = b"in both"
    for number in (1, 2, 3):
        store.put(*step(number, shared, b"only %d" % number))

    def later() -> float:
        return time.time() + 2 * DAY

    assert store.gc({key(1)}, older_than=DAY).manifests == 0, "all is young"
    planned = store.gc({key(1)}, older_than=DAY, now=later, dry_run=True)
    assert store.has(map(key, (1, 2, 3))) == {key(1), key(2), key(3)}
    removed = store.gc({key(1)}, older_than=DAY, now=later)
    assert removed == planned
    assert (removed.manifests, removed.blobs) == (2, 4)
    assert store.has(map(key, (1, 2, 3))) == {key(1)}
    assert store.read(blob(shared)) == shared
    assert store.read(blob(b"only 1")) == b"only 1"
    with pytest.raises(DamagedError):
        store.read(blob(b"only 2"))

    store.remove([key(1), key(7)])
    assert store.has([key(1)]) == set()
    gone = store.gc(set())
    assert gone.blobs + gone.waiting == 3, "young blobs may belong to an upload"
    assert store.gc(set(), now=later).blobs == gone.waiting
    assert store.usage().bytes == 0


@pytest.mark.parametrize("store", LISTED, indirect=True)
def test_gc_stops_at_the_given_size(store: Store) -> None:
    for number in (1, 2, 3):
        store.put(*step(number, bytes([number]) * 10000))
    size = store.usage().bytes
    removed = store.gc(set(), max_bytes=size - 5000, now=lambda: time.time() + 2 * DAY)
    assert (removed.manifests, removed.blobs) == (1, 2)
    assert store.gc(set(), max_bytes=size).manifests == 0


# -- servers that fail -----------------------------------------------------------------------


def test_store_reports_a_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRIES", 1)
    port = free_port()
    store = Store(f"http://127.0.0.1:{port}/store", tmp_path)
    with pytest.raises(StoreError) as caught:
        store.has([key(1)])
    assert f"http://127.0.0.1:{port}/store: cannot be asked what it has" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "check that the server is up" in str(caught.value)


@pytest.mark.parametrize("url", ["what://is/this", "s3://", "http://"])
def test_store_rejects_an_unknown_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{url}.*as the setting `artifacts`"):
        Store(url, tmp_path)


def test_blob_that_is_damaged_on_a_server_is_not_kept(webdav: str, tmp_path: Path) -> None:
    import urllib.request

    store = Store(f"{webdav}/damaged", tmp_path)
    store.put(*step(1, b"intact"))
    damaged = blob(b"intact")
    request = urllib.request.Request(
        f"{webdav}/damaged/blobs/{damaged.sha256[:2]}/{damaged.sha256}", b"inTact", method="PUT"
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(DamagedError):
        store.path(damaged)
    assert not list(tmp_path.rglob("*fetch*"))
    assert not store.inspect(key(1))
    store.forget(key(1))
    assert store.has([key(1)]) == set()
    store.put(*step(1, b"intact"))
    assert store.inspect(key(1))
