"""Encodes and validates manifests, and maps keys and digests to paths in a store.

A store may hold anything: a manifest whose digests are no digests, or whose names are no names of
files, counts as damaged.  Keys of other steps are checked when they become a path.
"""

from __future__ import annotations

import hashlib

import msgspec

from fabric.digest import Digest
from fabric.errors import StoreError
from fabric.jobs import Blob, Manifest

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Manifest).decode


def encode(manifest: Manifest) -> bytes:
    """What a store keeps of a step: a line of JSON, and the SHA-256 of it."""
    content = _encode(manifest)
    return content + b"\n" + _digest(content)


def decode(content: bytes, key: str) -> Manifest:
    """The manifest of a step.  ValueError says why it is none."""
    line, _, digest = content.rpartition(b"\n")
    if digest != _digest(line):
        raise ValueError("it is not what was written")
    try:
        manifest = _decode(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if manifest.key != key:
        raise ValueError(f"it is that of {manifest.key}")
    return manifest


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()


def manifest_path(key: str) -> str:
    """Where the manifest of a step is.  StoreError for what is no cache key."""
    try:
        return f"manifests/{Digest(key)}"
    except ValueError:
        raise StoreError(f"{key!r} is no cache key") from None


def blob_path(blob: Blob) -> str:
    """Where a blob is."""
    return f"blobs/{blob.sha256[:2]}/{blob.sha256}"


def key_of(path: str) -> str:
    """The cache key whose manifest is at ``path``; "" for a file that is none."""
    name = path.rpartition("/")[2]
    try:
        return Digest(name)
    except ValueError:
        return ""


def apart(manifest: Manifest | None) -> list[Blob]:
    """The blobs of a manifest that are stored apart from it."""
    return [blob for blob in manifest.blobs() if blob.content is None] if manifest else []


def steps_of(manifest: Manifest) -> list[str]:
    """Cache keys of the steps that it was made from."""
    inside = (one.key for artifact in manifest.artifacts for one in artifact.contents)
    return list(dict.fromkeys((*manifest.staged, *inside)))
