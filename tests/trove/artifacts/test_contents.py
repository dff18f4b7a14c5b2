"""Steps with equal contents are found by hints in the store, which may be lost or damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from servers_kit import free_port
from store_kit import LISTED, key, nginx

from fabric import bounds
from fabric.inputs import inputs
from fabric.jobs import SMALL, Artifact, Blob, Content, Job, Manifest, Part, Staged
from fabric.trove.artifacts import contents as module
from fabric.trove.artifacts.contents import Contents, output_of
from fabric.trove.artifacts.manifests import blob_path, manifest_path
from fabric.trove.artifacts.store import Store
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys

RECIPE = "a" * 64


def chunk(number: int, name: str, *below: int, recipe: str = RECIPE) -> Job:
    return Job(
        key=key(number), kind="chunk", name=name, arch="x86_64", log=f"build-step-{name}.log",
        artifacts=(f"{name}-libs", f"{name}-doc"), recipe=recipe, metadata={"ref": str(number)},
        staged=tuple(Staged(key(one), "core") for one in below),
    )  # fmt: skip


def system(number: int, *taken: Content) -> Job:
    return Job(
        key=key(number), kind="system", name="sys", arch="x86_64", log="build-step-sys.log",
        artifacts=("sys-rootfs",), recipe=RECIPE, lists=(("sys-rootfs", taken),),
        strata=(Part("core-runtime", "core", taken),),
    )  # fmt: skip


def built(store: Store, job: Job, *outputs: bytes) -> Manifest:
    """A worker has built and stored a step."""
    blobs = [Blob.of(data) for data in outputs]
    artifacts = tuple(Artifact(name, blob) for name, blob in zip(job.artifacts, blobs, strict=True))
    log = Blob.of(b"the log of %d" % len(job.key))
    manifest = Manifest(
        key=job.key, kind=job.kind, name=job.name, arch=job.arch, artifacts=artifacts, log=log,
        log_name=job.log, metadata=job.metadata, builder="w1",
        staged=tuple(one.key for one in job.staged),
    )  # fmt: skip
    store.put(manifest, {b.sha256: data for b, data in zip(blobs, outputs, strict=True)})
    return manifest


def recorded(contents: Contents, job: Job) -> bool:
    """Record a built step; whether its output was known before."""
    found = contents.record([job])
    contents._store.put_hints(found.hints)
    return job.key in found.keys


def has_equal(contents: Contents, job: Job) -> bool:
    """Whether a step has an equal one, whose output it has then."""
    found = contents.find_equal([job])
    contents._store.put_hints(found.hints)
    return job.key in found.keys


LARGE = b"x" * (SMALL + 1)


@pytest.fixture
def contents(store: Store) -> Contents:
    """Contents of a store with zlib (1) and curl (2), which was built with it."""
    return filled(store)


def filled(store: Store) -> Contents:
    contents = Contents(store)
    for job, output in ((chunk(1, "zlib"), b"zlib"), (chunk(2, "curl", 1), LARGE)):
        built(store, job, output, b"doc")
        assert not recorded(contents, job)
    return contents


def edited(store: Store, contents: Contents, *outputs: bytes) -> bool:
    """zlib is edited, and built again (11); returns whether its output was known."""
    built(store, chunk(11, "zlib"), *outputs)
    return recorded(contents, chunk(11, "zlib"))


def test_step_that_was_made_from_other_bytes_has_no_equal(store: Store, contents: Contents) -> None:
    """The hint is by what the store has; the worker of the origin had another layer."""
    assert edited(store, contents, b"zlib", b"doc")
    before, zlib = store.manifest(key(2)), store.manifest(key(1))
    assert before is not None
    assert zlib is not None
    for digests, equal in [(("1" * 64,), False), ((output_of(zlib).hex(),), True)]:
        store.remove([key(2)])
        assert store.put_equal(replace(before, input_digests=digests))
        assert has_equal(contents, chunk(12, "curl", 11)) == equal
    now = store.manifest(key(12))
    assert now is not None
    assert now.input_digests == (output_of(zlib).hex(),)


def test_step_with_equal_contents_is_found(store: Store, contents: Contents) -> None:
    assert edited(store, contents, b"zlib", b"doc")
    job = chunk(12, "curl", 11)
    assert store.manifest(job.key) is None
    assert has_equal(contents, job)
    before, now = store.manifest(key(2)), store.manifest(key(12))
    assert before is not None
    assert now == replace(
        before,
        key=key(12),
        metadata={"ref": "12"},
        staged=(key(11),),
        origin=key(2),
        inputs=inputs(job),
    )
    assert store.inspect(key(12))
    # The origin of an equal step's equal is the step that was built.
    assert has_equal(Contents(store), chunk(22, "curl", 11))
    third = store.manifest(key(22))
    assert third is not None
    assert third.origin == key(2)


def test_step_with_other_contents_is_not_found(store: Store, contents: Contents) -> None:
    assert not edited(store, contents, b"zlib", b"another doc")
    assert not has_equal(contents, chunk(12, "curl", 11))
    assert store.manifest(key(12)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "b" * 64},
        {"staged": ()},
        {"staged": (Staged(key(11), "core"), Staged(key(11), "core"))},
        {"artifacts": ("curl-libs",)},
        {"kind": "stratum"},
    ],
)
def test_other_step_is_not_found(
    store: Store, contents: Contents, change: dict[str, object]
) -> None:
    edited(store, contents, b"zlib", b"doc")
    assert not has_equal(contents, replace(chunk(12, "curl", 11), **change))


def test_step_without_a_manifest_below_is_not_found(contents: Contents) -> None:
    assert not has_equal(contents, chunk(12, "curl", 11))


def test_order_of_layers_counts(store: Store, contents: Contents) -> None:
    built(store, chunk(3, "other"), b"other", b"doc")
    built(store, chunk(4, "both", 1, 3), b"both", b"doc")
    recorded(contents, chunk(4, "both", 1, 3))
    assert has_equal(contents, chunk(14, "both", 1, 3))
    assert not has_equal(contents, chunk(24, "both", 3, 1))


def test_outputs_are_remembered_until_a_step_is_built_again(
    store: Store, contents: Contents
) -> None:
    edited(store, contents, b"zlib", b"doc")
    store.remove([key(11)])
    built(store, chunk(11, "zlib"), b"something else", b"doc")
    contents.forget(key(11))
    assert not has_equal(contents, chunk(12, "curl", 11))


@pytest.mark.bound("OUTPUTS_KNOWN")
def test_remembered_outputs_are_bounded(
    store: Store, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OUTPUTS_KNOWN", 2)
    edited(store, contents, b"zlib", b"doc")
    assert has_equal(contents, chunk(12, "curl", 11)), "it is read again"
    assert len(contents._outputs) <= 2


def test_many_steps_are_compared_at_once(store: Store, contents: Contents) -> None:
    """A remote store is asked about them in parallel."""
    edited(store, contents, b"zlib", b"doc")
    jobs = [chunk(number, "curl", 11) for number in range(100, 140)]
    found = contents.find_equal([*jobs, chunk(99, "curl", 11, recipe="b" * 64)])
    assert found.keys == {job.key for job in jobs}
    store.put_hints(found.hints)
    assert store.latest("chunk", "curl", "x86_64") in found.keys
    assert contents.record(jobs).keys == found.keys


def test_equal_of_what_a_revoked_key_signed_does_not_count(tmp_path: Path) -> None:
    """Else the broker's signature would go on vouching for them."""
    keys, theirs = TrustedKeys(tmp_path / "broker"), TrustedKeys(tmp_path / "worker")
    theirs.signer()
    keys.trust(tmp_path / "worker/own.pub", "worker")
    place = str(tmp_path / "store")
    store = Store(place, tmp_path / "scratch", seal=Seal(keys))
    worker = Store(place, tmp_path / "scratch", seal=Seal(theirs))
    filled(worker)
    contents = Contents(store)
    for job in (chunk(1, "zlib"), chunk(2, "curl", 1)):
        recorded(contents, job)
    assert edited(store, contents, b"zlib", b"doc"), "by a key that is not revoked"
    assert has_equal(contents, chunk(12, "curl", 11))
    assert has_equal(Contents(store), chunk(22, "curl", 11)), "the equal of an equal"
    assert store.has(map(key, (2, 12, 22))) == {key(2), key(12), key(22)}
    keys.revoke("worker")
    assert store.has(map(key, (2, 11, 12, 22))) == {key(11)}


def test_step_that_is_equal_to_its_own_equal_has_no_origin(
    store: Store, contents: Contents
) -> None:
    edited(store, contents, b"zlib", b"doc")
    assert has_equal(contents, chunk(12, "curl", 11))
    store.remove([key(2)])
    assert has_equal(contents, chunk(2, "curl", 1))
    again = store.manifest(key(2))
    assert again is not None
    assert again.origin == ""


# -- systems -------------------------------------------------------------------------------


def test_system_is_equal_if_its_artifacts_and_their_metadata_are(
    store: Store, contents: Contents
) -> None:
    first = system(5, Content(key(1), "zlib-libs"))
    built(store, first, b"a system")
    recorded(contents, first)
    for number, doc, metadata, equal in (
        (10, b"doc", {"ref": "11"}, False),
        (20, b"doc", {"ref": "1"}, True),
        (30, b"a doc that it does not have", {"ref": "1"}, True),
    ):
        built(store, replace(chunk(number, "zlib"), metadata=metadata), b"zlib", doc)
        job = system(number + 1, Content(key(number), "zlib-libs"))
        assert has_equal(contents, job) == equal
    found = store.manifest(key(31))
    assert found is not None
    assert found.artifact("sys-rootfs").blob == Blob.of(b"a system")


# -- loss and damage -----------------------------------------------------------------


def hints(store: Store) -> list[str]:
    return [entry.path for entry in store._backend.list("hints")]


@pytest.mark.parametrize("store", LISTED, indirect=True)
@pytest.mark.bound("HINT")
@pytest.mark.parametrize(
    "content", [b"", b"z" * 64, b"a" * (bounds.HINT + 1), b"\xff" * 64, key(99).encode()]
)
def test_damaged_hint_costs_a_build(store: Store, contents: Contents, content: bytes) -> None:
    edited(store, contents, b"zlib", b"doc")
    for path in hints(store):
        store._backend.write(path, content)
    assert not has_equal(contents, chunk(12, "curl", 11))
    built(store, chunk(12, "curl", 11), LARGE, b"doc")
    recorded(contents, chunk(12, "curl", 11))
    assert has_equal(contents, chunk(22, "curl", 11)), "it is written anew"


@pytest.mark.parametrize("store", LISTED, indirect=True)
def test_missing_blob_costs_a_build(store: Store, contents: Contents) -> None:
    edited(store, contents, b"zlib", b"doc")
    blob = Blob.of(LARGE)
    store._backend.delete([blob_path(blob)])
    assert not has_equal(contents, chunk(12, "curl", 11))
    assert store.manifest(key(12)) is None
    store._backend.write(blob_path(blob), b"cut short")
    assert not has_equal(contents, chunk(12, "curl", 11))
    assert store.manifest(key(12)) is None


def test_missing_manifest_costs_a_build(store: Store, contents: Contents) -> None:
    edited(store, contents, b"zlib", b"doc")
    store.remove([key(2)])
    assert not has_equal(contents, chunk(12, "curl", 11))


# -- the last build ------------------------------------------------------------------------


def test_latest_is_the_step_that_was_stored_last(store: Store, contents: Contents) -> None:
    assert store.latest("chunk", "curl", "x86_64") == key(2)
    edited(store, contents, b"zlib", b"doc")
    assert store.latest("chunk", "zlib", "x86_64") == key(11)
    assert has_equal(contents, chunk(12, "curl", 11))
    assert store.latest("chunk", "curl", "x86_64") == key(12)
    assert store.latest("chunk", "curl", "armv7l") is None
    assert store.latest("system", "curl", "x86_64") is None


# -- gc ------------------------------------------------------------------------------------


@pytest.fixture(params=["directory", "webdav"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    """A store of its own, and the folder of its files."""
    if request.param == "directory":
        yield Store(str(tmp_path / "store"), tmp_path / "scratch"), tmp_path / "store"
        return
    (tmp_path / "server").mkdir()
    with nginx(tmp_path / "server", free_port()) as server:
        yield Store(f"{server.url}/a", tmp_path / "scratch"), server.data / "a"


def make_old(folder: Path) -> None:
    then = time.time() - 30 * 86400
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def test_gc_keeps_blobs_of_equal_steps_and_removes_hints_to_nothing(
    place: tuple[Store, Path],
) -> None:
    store, folder = place
    contents = filled(store)
    make_old(folder)
    assert edited(store, contents, b"zlib", b"doc")
    assert has_equal(contents, chunk(12, "curl", 11))
    gone = store.gc(set(), older_than=86400.0)
    assert gone.manifests == 2
    assert set(store.keys()) == {key(11), key(12)}
    assert store.inspect(key(12)), "its blob is that of a removed step"
    assert len(hints(store)) == 5, "two by outputs, two by names, one by contents"
    assert has_equal(Contents(store), chunk(22, "curl", 11)), "the hint names the newest step"
    assert store.gc({key(11)}).manifests == 2
    assert len(hints(store)) == 2
    assert store.latest("chunk", "zlib", "x86_64") == key(11)
    assert store.latest("chunk", "curl", "x86_64") is None


def test_gc_spares_blobs_that_an_equal_step_names_meanwhile(
    place: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = place
    contents = filled(store)
    make_old(folder)
    uses = store._backend.uses

    def meanwhile() -> object:  # after gc has listed what there is
        edited(store, contents, b"zlib", b"doc")
        assert has_equal(contents, chunk(12, "curl", 11))
        return uses()

    monkeypatch.setattr(store._backend, "uses", meanwhile)
    assert store.gc(set(), older_than=86400.0).manifests == 2
    assert (folder / manifest_path(key(12))).exists()
    assert store.inspect(key(12))
