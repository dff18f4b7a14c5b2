"""Foreign content in a store is damage with a reason, and has no other effect."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.json import encode

from fabric import bounds
from fabric.errors import DamagedError, StoreError
from fabric.jobs import Artifact, Blob, Manifest
from fabric.trove.artifacts.store import Store

KEY, OTHER, DIGEST = "a" * 64, "b" * 64, "c" * 64
GOOD = json.loads(
    encode(
        Manifest(
            key=KEY,
            kind="chunk",
            name="thing",
            arch="x86_64",
            artifacts=(Artifact("thing-misc", Blob(DIGEST, 4)),),
            log=Blob(DIGEST, 4),
            log_name="build-step-thing.log",
        )
    )
)


def blob(**fields: Any) -> dict[str, Any]:
    return {"artifacts": [{"name": "thing-misc", "blob": {"sha256": DIGEST, "size": 4, **fields}}]}


def named(name: str) -> dict[str, Any]:
    return {"artifacts": [{"name": name, "blob": {"sha256": DIGEST, "size": 4}}]}


#: (name, wrong fields of the manifest, error)
MANIFESTS: list[tuple[str, dict[str, Any], str]] = [
    ("a path for a digest", blob(sha256="../../../etc/passwd"), "$.artifacts[0].blob.sha256"),
    ("an absolute path", blob(sha256="/" + "c" * 63), "$.artifacts[0].blob.sha256"),
    ("a digest in capitals", blob(sha256="C" * 64), "$.artifacts[0].blob.sha256"),
    ("a digest and a line", blob(sha256="c" * 64 + "\n"), "$.artifacts[0].blob.sha256"),
    ("no digest", blob(sha256=""), "$.artifacts[0].blob.sha256"),
    ("a negative size", blob(size=-1), "$.artifacts[0].blob.size"),
    ("a size past all", blob(size=10**30), "$.artifacts[0].blob.size"),
    ("a size that is text", blob(size="4"), "$.artifacts[0].blob.size"),
    ("a log that is a path", {"log": {"sha256": "../x", "size": 4}}, "$.log.sha256"),
    ("a log's name that is a path", {"log_name": "../../.bashrc"}, "$.log_name"),
    ("a log's name in a folder", {"log_name": "a/b"}, "$.log_name"),
    ("a log's name with an escape", {"log_name": "a\x1b[2J"}, "$.log_name"),
    ("a log's name without end", {"log_name": "a" * 256}, "$.log_name"),
    ("an artifact's name that is a path", named("../x"), "$.artifacts[0].name"),
    ("an artifact's name that is an option", named("-x"), "$.artifacts[0].name"),
    ("an artifact without name", named(""), "$.artifacts[0].name"),
    ("a step's name with an escape", {"name": "\x1b]52;c;eA==\x07"}, "$.name"),
    ("another's key", {"key": OTHER}, f"it is that of {OTHER}"),
    ("a key that is a path", {"key": "../" + "a" * 61}, "$.key"),
    ("a kind of its own", {"kind": "virus"}, "$.kind"),
    ("text for a list", {"artifacts": "all"}, "$.artifacts"),
    ("a time after all calendars", {"built": 1e20}, "$.built"),
    ("a time before all calendars", {"built": -1e20}, "$.built"),
    ("a build without end", {"seconds": 1e300}, "$.seconds"),
    ("a build that ended before it began", {"seconds": -1.0}, "$.seconds"),
]
#: (name, content of the file, error)
CONTENTS: list[tuple[str, bytes, str]] = [
    ("no JSON", b"\xff\xfe\x00", "malformed"),
    ("a list", b"[]", "Expected `object`"),
    ("half of it", json.dumps(GOOD).encode()[:100], "truncated"),
    ("deep", b"[" * 100_000, "Expected `object`"),
    ("deep in what is unknown", b'{"more":' + b"[" * 1_000_000, "it is nested too deeply"),
    ("deep inside", b'{"metadata":' + b'{"a":' * 100_000, "$.metadata"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    for folder in ("manifests", f"blobs/{DIGEST[:2]}"):
        (tmp_path / "store" / folder).mkdir(parents=True)
    (tmp_path / "secret").write_text("kept")
    return store


def sealed(content: bytes) -> bytes:
    """The content as a store writes it."""
    return content + b"\n" + hashlib.sha256(content).hexdigest().encode()


def is_damage(store: Store, content: bytes, said: str) -> None:
    """Each use of a step with that manifest gives this error; `forget` removes only that step."""
    top = Path(store.url)
    (top / "manifests" / KEY).write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        store.manifest(KEY)
    assert str(caught.value).startswith(f"{store.url}: manifest {KEY} is damaged: ")
    assert str(caught.value).endswith("; the step is to be built again")
    assert said in str(caught.value)
    assert caught.value.keys == (KEY,)
    assert not store.inspect(KEY)
    assert store.gc(set(), dry_run=True).manifests == 1
    store.forget(KEY)
    assert store.has([KEY]) == set()
    assert (top.parent / "secret").read_text() == "kept"


@pytest.mark.parametrize(("what", "fields", "said"), MANIFESTS, ids=[one[0] for one in MANIFESTS])
def test_manifest_with_a_wrong_field_is_damage(
    store: Store,
    what: str,  # noqa: ARG001
    fields: dict[str, Any],
    said: str,
) -> None:
    is_damage(store, sealed(json.dumps({**GOOD, **fields}).encode()), said)


@pytest.mark.parametrize(("what", "content", "said"), CONTENTS, ids=[one[0] for one in CONTENTS])
def test_manifest_with_other_content_is_damage(
    store: Store,
    what: str,  # noqa: ARG001
    content: bytes,
    said: str,
) -> None:
    is_damage(store, sealed(content), said)


@pytest.mark.parametrize("place", [0, 100, -70, -20, -1])
def test_manifest_with_a_flipped_bit_is_damage(store: Store, place: int) -> None:
    content = bytearray(sealed(json.dumps(GOOD).encode()))
    content[place] ^= 1
    is_damage(store, bytes(content), "it is not what was written")


@pytest.mark.bound("MANIFEST")
def test_manifest_past_the_bound_is_damage(store: Store) -> None:
    content = sealed(json.dumps(GOOD).encode())
    is_damage(store, content + b" " * bounds.MANIFEST, f"more than {bounds.MANIFEST} bytes")


def test_blob_that_is_too_long_is_not_read_to_its_end(store: Store) -> None:
    (Path(store.url) / "blobs" / DIGEST[:2] / DIGEST).write_bytes(b"x" * 100_000)
    with pytest.raises(DamagedError, match="it has more than 4 bytes"):
        store.read(Blob(DIGEST, 4))


def test_manifest_without_the_artifact_is_damage(store: Store) -> None:
    (Path(store.url) / "manifests" / KEY).write_bytes(sealed(json.dumps(GOOD).encode()))
    manifest = store.manifest(KEY)
    assert manifest
    with pytest.raises(DamagedError, match=f"manifest {KEY} of thing lacks thing-bins"):
        manifest.artifact("thing-bins")


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_store_rejects_invalid_keys(store: Store, key: str) -> None:
    for use in (store.manifest, store.forget, lambda it: store.has([it])):
        with pytest.raises(StoreError, match="is no cache key"):
            use(key)


def test_store_ignores_files_that_are_no_manifests(store: Store) -> None:
    top = Path(store.url)
    for name in ("README", ".DS_Store", "a" * 63, "x" * 64):
        (top / "manifests" / name).write_text("mine")
    assert list(store.keys()) == []
    assert store.gc(set()).manifests == 0
    assert len(list((top / "manifests").iterdir())) == 4
