"""Steps that a substituter has are copied and not built; otherwise they are built as ever."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from building_kit import Kit, key_of
from msgspec.structs import replace

from fabric.building.attempt import Attempt
from fabric.config import WorkerSettings
from fabric.errors import Cancelled
from fabric.jobs import Artifact, Blob, Job, Manifest
from fabric.trove.artifacts.manifests import digest_of, manifest_path
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.substituters import Substituters
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys

LOG = b"what was printed there\n" * 1000


class Theirs:
    """The store of others, who have built steps, and sign them."""

    def __init__(self, top: Path) -> None:
        self.keys = TrustedKeys(top / "keys")
        self.folder = top / "theirs"
        self.store = Store(str(self.folder), top / "their scratch", seal=Seal(self.keys))
        self.substituters = Substituters([self.store], top / "resting")

    def put(self, job: Job, log: bytes = LOG) -> Manifest:
        blob = Blob.of(b"an archive" * 1000)
        artifacts = tuple(Artifact(name, blob) for name in job.artifacts)
        manifest = Manifest(
            key=job.key, kind=job.kind, name=job.name, arch=job.arch, artifacts=artifacts,
            log=Blob.of(log), builder="far-worker", seconds=12.5, staged=("c" * 64,),
        )  # fmt: skip
        self.store.put(manifest, {blob.sha256: b"an archive" * 1000, Blob.of(log).sha256: log})
        return manifest


@pytest.fixture
def theirs(tmp_path: Path) -> Theirs:
    return Theirs(tmp_path)


@pytest.mark.parametrize("log", [LOG, b"short\n"])
def test_step_is_copied_with_its_log(kit: Kit, theirs: Theirs, log: bytes) -> None:
    job = kit.chunk(build=["echo built here"])
    manifest = theirs.put(job, log)
    assert kit.build(job, substituters=theirs.substituters) == manifest
    assert (kit.root / "artifacts" / manifest_path(job.key)).read_bytes() == (
        theirs.folder / manifest_path(job.key)
    ).read_bytes()
    assert kit.store.inspect(job.key)
    said = f"### copied from {theirs.folder}\n### built there in 12.5 s by far-worker:\n"
    assert kit.log_bytes == said.encode() + log
    assert kit.phases[0] == "copy"
    assert kit.phases[-1] == "store"
    assert "build" not in kit.phases
    again = kit.build(job, substituters=theirs.substituters)
    assert again == manifest
    assert kit.log_bytes == log, "now it is the store's own"


def test_outcome_says_whether_the_step_was_built_here(
    kit: Kit, theirs: Theirs, tmp_path: Path
) -> None:
    """A copy says nothing of how long building takes, and nobody here has seen it built."""
    copied, built = kit.chunk("copied"), kit.chunk("built")
    theirs.put(copied)
    outcomes = []
    for number, job in enumerate((copied, built, built)):
        raw = msgspec.Raw(msgspec.msgpack.encode(job))
        attempt = Attempt(job.key, number, raw, tmp_path / f"spool-{number}", lambda: None)
        run = (kit.workspace, WorkerSettings(), "w1", tmp_path / "none", theirs.substituters)
        outcomes.append(attempt.run(*run))
        attempt.log.discard()
    manifest = kit.store.manifest(built.key)
    assert manifest is not None
    said = [(one.result, one.built, one.manifest) for one in outcomes]
    assert said == [
        ("done", False, ""),
        ("done", True, digest_of(manifest)),
        ("done", False, ""),
    ]


def test_step_that_nobody_has_is_built(kit: Kit, theirs: Theirs) -> None:
    job = kit.chunk(build=["echo built here"])
    manifest = kit.build(job, substituters=theirs.substituters, builder="near-worker")
    assert manifest.builder == "near-worker"
    assert kit.log_text.startswith("### BUILD-COMMANDS ###\n")


def test_step_that_does_not_count_is_built_and_the_log_says_why(kit: Kit, theirs: Theirs) -> None:
    job = kit.chunk(build=["echo built here"])
    stranger = Theirs(kit.root / "stranger")
    stranger.store = Store(str(theirs.folder), kit.root, seal=Seal(stranger.keys))
    stranger.put(job)
    manifest = kit.build(job, substituters=theirs.substituters, builder="near-worker")
    assert manifest.builder == "near-worker"
    first, *rest = kit.log_text.splitlines()
    assert first.startswith(
        f"### not copied from {theirs.folder}: its manifest counts as absent: it is signed with the"
        " unknown key"
    )
    assert "built here" in rest
    assert kit.store.inspect(job.key)


def test_rebuild_is_built(kit: Kit, theirs: Theirs) -> None:
    job = replace(kit.chunk(build=["echo built here"]), rebuild_of=key_of("the first"))
    theirs.put(job)
    manifest = kit.build(job, substituters=theirs.substituters, builder="near-worker")
    assert manifest.builder == "near-worker"


def test_cancelled_copy_ends_the_attempt(kit: Kit, theirs: Theirs) -> None:
    job = kit.chunk(build=["echo built here"])
    theirs.put(job)

    def cancel(phase: str) -> None:
        if phase.startswith("copy "):
            kit.cancel.set()

    with pytest.raises(Cancelled):
        kit.build(job, substituters=theirs.substituters, phase=cancel)
    assert kit.store.manifest(job.key) is None


def test_manifest_of_our_own_store_that_is_there_is_used(kit: Kit, theirs: Theirs) -> None:
    job = kit.chunk(build=["echo built here"])
    kit.build(job, builder="near-worker")
    theirs.put(job)
    manifest = kit.build(job, substituters=theirs.substituters)
    assert manifest.builder == "near-worker"
