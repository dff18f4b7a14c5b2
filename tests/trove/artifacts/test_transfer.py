"""Steps are copied from store to store as they are, once, whole, and only if they count."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from servers_kit import Cable, free_port
from store_kit import Server, key, nginx, step

from fabric import bounds
from fabric.errors import StoreError
from fabric.jobs import Artifact, Content
from fabric.trove.artifacts import remote
from fabric.trove.artifacts.manifests import apart
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.transfer import copy_steps, made_from
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        yield server


def quiet(*_: int) -> None: ...


def store_at(url: str | Path, tmp_path: Path, keys: TrustedKeys | None = None) -> Store:
    scratch = tmp_path / f"scratch-{Path(str(url)).name}"
    return Store(str(url), scratch, seal=Seal(keys) if keys else None)


def bytes_of(store: Path) -> dict[str, bytes]:
    """All manifests and blobs of a store, by path."""
    files = [*store.glob("manifests/*"), *store.glob("blobs/*/*")]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def filled(url: Path, tmp_path: Path, steps: int = 3, keys: TrustedKeys | None = None) -> Store:
    store = store_at(url, tmp_path, keys)
    for number in range(steps):
        store.put(*step(number, os.urandom(20_000), b"shared" * 2000))
    return store


def test_steps_keep_every_byte_on_the_way_to_a_server_and_back(
    server: Server, tmp_path: Path
) -> None:
    ours = filled(tmp_path / "ours", tmp_path, keys=TrustedKeys(tmp_path / "our keys"))
    keys = list(ours.keys())
    seen: list[tuple[int, int, int]] = []
    there = store_at(f"{server.url}/a", tmp_path)
    sent = copy_steps(keys, ours, there, lambda *numbers: seen.append(numbers))
    assert sorted(sent.copied) == sorted(keys)
    assert (sent.sent.steps, sent.there.steps) == (3, 0)
    assert sent.sent.bytes > 3 * 20_000
    assert [one[:2] for one in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == sent.sent.bytes
    assert bytes_of(server.data / "a") == bytes_of(tmp_path / "ours")
    theirs = store_at(tmp_path / "theirs", tmp_path)
    copy_steps(keys, store_at(f"{server.url}/a", tmp_path / "more"), theirs, quiet)
    assert bytes_of(tmp_path / "theirs") == bytes_of(tmp_path / "ours")


@pytest.mark.parametrize("there", ["a directory", "a server"])
def test_what_is_there_is_not_sent_again(server: Server, tmp_path: Path, there: str) -> None:
    ours = filled(tmp_path / "ours", tmp_path)
    url = f"{server.url}/a" if there == "a server" else tmp_path / "there"
    files = server.data / "a" if there == "a server" else tmp_path / "there"
    to = store_at(url, tmp_path)
    first = copy_steps([key(0)], ours, to, quiet)
    stamps = {file: file.stat().st_ino for file in files.glob("**/*") if file.is_file()}
    second = copy_steps([key(0), key(1), key(1)], ours, to, quiet)
    assert (second.copied, second.sent.steps, second.there.steps) == ([key(1)], 1, 1)
    assert second.sent.bytes < first.sent.bytes, "without what both steps share"
    assert second.there.bytes >= 32_000
    assert stamps.items() <= {file: file.stat().st_ino for file in stamps}.items()


def test_more_steps_than_threads_are_copied(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PARALLEL", 2)
    filled(tmp_path / "ours", tmp_path, 5)
    ours, here = store_at(tmp_path / "ours", tmp_path), store_at(tmp_path / "here", tmp_path)
    keys = [*ours.keys()]
    to = store_at(f"{server.url}/b", tmp_path)
    assert len(copy_steps(keys, ours, to, quiet).copied) == 5
    server_again = store_at(f"{server.url}/b", tmp_path / "again")
    assert len(copy_steps(keys, server_again, here, quiet).copied) == 5
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "ours")


def test_steps_that_are_missing_unsigned_or_damaged_are_named(tmp_path: Path) -> None:
    keys, others = TrustedKeys(tmp_path / "keys"), TrustedKeys(tmp_path / "others")
    filled(tmp_path / "theirs", tmp_path, 1, keys)
    store_at(tmp_path / "theirs", tmp_path, others).put(*step(1, b"b" * 5000))
    store_at(tmp_path / "theirs", tmp_path).put(*step(2, b"c" * 5000))
    theirs, ours = (store_at(tmp_path / name, tmp_path, keys) for name in ("theirs", "ours"))
    manifest, files = step(3, b"d" * 5000)
    theirs.put(manifest, files)
    for blob in apart(manifest):
        file = theirs.place(blob)
        assert file
        if blob.size == 5000:
            file.chmod(0o644)
            file.write_bytes(b"e" * 5000)
    done = copy_steps([key(number) for number in range(5)], theirs, ours, quiet)
    assert (done.copied, done.missing) == ([key(0)], [key(4)])
    assert done.refused.keys() == {key(1), key(2), key(3)}
    assert "it is signed with the unknown key" in done.refused[key(1)]
    assert done.refused[key(2)] == "it is not signed"
    assert "is damaged: its digest is" in done.refused[key(3)]
    assert list(ours.keys()) == [key(0)]
    anybody = store_at(tmp_path / "anybody", tmp_path)
    done = copy_steps([key(1), key(2)], store_at(tmp_path / "theirs", tmp_path), anybody, quiet)
    assert done.copied == [key(1), key(2)], "who trusts everybody takes it"


def test_manifest_that_does_not_count_gives_way(tmp_path: Path) -> None:
    ours = filled(tmp_path / "ours", tmp_path, 1, keys := TrustedKeys(tmp_path / "keys"))
    store_at(tmp_path / "there", tmp_path).put(*step(0, b"others"))
    done = copy_steps([key(0)], ours, store_at(tmp_path / "there", tmp_path, keys), quiet)
    assert done.copied == [key(0)]
    name = f"manifests/{key(0)}"
    assert bytes_of(tmp_path / "there")[name] == bytes_of(tmp_path / "ours")[name]


def whole(store: Path) -> set[str]:
    """Keys of a store's manifests, all of whose blobs must be there, undamaged."""
    checked = Store(str(store), store.parent / "check")
    keys = set(checked.keys())
    for one in keys:
        assert checked.inspect(one), one
    return keys


def test_countersignature_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    source, to = (Store(str(tmp_path / name), tmp_path / "scratch") for name in ("a", "b"))
    for number in (1, 2):
        source.put(*step(number))
        source.put_countersignature(key(number), b"{}")
    (tmp_path / "a/countersigned" / key(1)).unlink()
    (tmp_path / "a/countersigned" / key(1)).mkdir()
    assert copy_steps([key(1), key(2)], source, to, lambda *_: None).sent.steps == 2
    assert (to.countersignature(key(1)), to.countersignature(key(2))) == (None, b"{}")


def test_copy_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    ours = filled(tmp_path / "ours", tmp_path, 4)
    keys = [key(number) for number in range(4)]
    to = store_at(tmp_path / "there", tmp_path)

    def stop(done: int, *_: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_steps(keys, ours, to, stop)
    assert whole(tmp_path / "there") == {key(0), key(1)}
    done = copy_steps(keys, ours, to, quiet)
    assert (done.copied, done.there.steps) == ([key(2), key(3)], 2)
    assert whole(tmp_path / "there") == {*keys}


@pytest.mark.parametrize("up", [True, False])
def test_copy_over_a_cable_that_breaks_leaves_nothing_half_and_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: bool
) -> None:
    monkeypatch.setattr(remote, "RETRIES", 0)
    contents = [os.urandom(size) for size in (1_500_000, 3_000_000, 3_000_000)]
    here = store_at(tmp_path / "here" if up else f"{server.url}/a", tmp_path)
    here.put(*step(1, *contents))
    to_folder = server.data / "a" if up else tmp_path / "there"
    with Cable(server.port) as cable:
        far = f"http://127.0.0.1:{cable.port}/a"
        source = here if up else store_at(far, tmp_path / "pulled")
        to = store_at(far if up else to_folder, tmp_path / "pulled")
        monkeypatch.setattr(remote, "PARALLEL", 1)  # one after the other
        cable.up, cable.after, cable.breaks = up, 2_000_000, 1_000
        with pytest.raises(StoreError, match="cannot be"):
            copy_steps([key(1)], source, to, quiet)
        assert whole(to_folder) == set()
        cable.breaks = 0
        before = cable.passed
        done = copy_steps([key(1)], source, to, quiet)
        assert done.copied == [key(1)]
        assert whole(to_folder) == {key(1)}
        if up:
            assert done.there.bytes >= 1_500_000, "the first blob was there"
        else:
            assert cable.passed - before < 7_000_000, "the first blob is not fetched again"


# -- what a step was made from ----------------------------------------------------------------


def chain(store: Store) -> None:
    """Step 3 contains 2, which was built with 1, which was built with 0."""
    for number in range(3):
        below = (key(number - 1),) if number else ()
        manifest, files = step(number, b"%d" % number)
        store.put(replace(manifest, staged=below), files)
    top, files = step(3)
    contents = (Artifact("all", None, (Content(key(2), "a-0"),)),)
    store.put(replace(top, artifacts=contents), files)


def test_all_that_a_step_was_made_from_is_found(tmp_path: Path) -> None:
    chain(store := store_at(tmp_path / "store", tmp_path))
    assert made_from(store, [key(3)]) == [key(3), key(2), key(1), key(0)]
    assert made_from(store, [key(3)], inside=True) == [key(3), key(2)]
    assert made_from(store, [key(1), key(9)]) == [key(1), key(9), key(0)]


@pytest.mark.bound("SHARED_STEPS")
def test_too_many_steps_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(store := store_at(tmp_path / "store", tmp_path))
    monkeypatch.setattr(bounds, "SHARED_STEPS", 3)
    with pytest.raises(StoreError, match="made from more than 3: name fewer at a time"):
        made_from(store, [key(3)])
    assert len(made_from(store, [key(2)])) == 3
