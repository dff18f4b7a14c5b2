"""Encodes and validates manifests, and maps keys and digests to paths in a store.

Stores are untrusted: a manifest that no trusted key signed counts as absent, if there are trusted
keys (`fabric.trust`), and one with invalid digests or names of files counts as damaged.  Keys of
other steps are checked when they become a path.
"""

from __future__ import annotations

import hashlib

import msgspec

from fabric.digest import Digest
from fabric.errors import StoreError
from fabric.jobs import Blob, Manifest
from fabric.trust.seal import HINT, MANIFEST, Seal, UnsignedError, is_envelope, read_envelope

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Manifest).decode


def encode(manifest: Manifest, seal: Seal | None = None) -> bytes:
    """The stored form of a manifest: a line of JSON and its SHA-256, signed if there is a seal."""
    line = _encode(manifest)
    content = line + b"\n" + _digest(line)
    return content if seal is None else seal.close(MANIFEST, content)


def digest_of(manifest: Manifest) -> str:
    """The digest of a manifest, whoever signs it."""
    return hashlib.sha256(_encode(manifest)).hexdigest()


def stored_digest(data: bytes) -> str:
    """The same of one in its stored form, which is valid."""
    content = read_envelope(MANIFEST, data).content if is_envelope(data) else data
    return content.rpartition(b"\n")[2].decode()


def decode(data: bytes, key: str, seal: Seal | None = None) -> Manifest:
    """The manifest of a step.

    ValueError if it is invalid; UnsignedError if there is a seal, and no trusted key signed it, or
    a revoked one signed that of its origin.
    """
    content = _opened(MANIFEST, data, seal)
    line, _, digest = content.rpartition(b"\n")
    if digest != _digest(line):
        raise ValueError("it is not what was written")
    try:
        manifest = _decode(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if manifest.key != key:
        raise ValueError(f"it is that of {manifest.key}")
    if seal is not None:
        seal.demand_unrevoked(manifest.origin_signers)
    return manifest


def encode_hint(digest: str, key: str, seal: Seal | None = None) -> bytes:
    """The stored form of a hint: a cache key, signed with what it is a hint to."""
    return key.encode() if seal is None else seal.close(HINT, f"{digest} {key}".encode())


def decode_hint(data: bytes, digest: str, seal: Seal | None = None) -> str:
    """The cache key in a hint.  ValueError if it is invalid, or does not count."""
    content = _opened(HINT, data, seal).decode()
    if not is_envelope(data):
        return Digest(content)
    of, _, key = content.partition(" ")
    if of != digest:
        raise ValueError(f"it is a hint to {of}")
    return Digest(key)


def _opened(kind: str, data: bytes, seal: Seal | None) -> bytes:
    """What is stored, without an envelope."""
    if seal is None:
        return read_envelope(kind, data).content if is_envelope(data) else data
    if not is_envelope(data):
        raise UnsignedError("it is not signed")
    return seal.open(kind, data)


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()


def manifest_path(key: str) -> str:
    """The path of a step's manifest.  StoreError for an invalid cache key."""
    try:
        return f"manifests/{Digest(key)}"
    except ValueError:
        raise StoreError(f"{key!r} is no cache key") from None


def countersignature_path(key: str) -> str:
    """The path of a step's countersignature.  StoreError for an invalid cache key."""
    return manifest_path(key).replace("manifests/", "countersigned/")


def hint_path(digest: str) -> str:
    """The path of a hint."""
    return f"hints/{digest}"


def blob_path(blob: Blob) -> str:
    """The path of a blob."""
    return f"blobs/{blob.sha256[:2]}/{blob.sha256}"


def key_of(path: str) -> str:
    """The cache key of the manifest at ``path``; "" for another file."""
    name = path.rpartition("/")[2]
    try:
        return Digest(name)
    except ValueError:
        return ""


def apart(manifest: Manifest | None) -> list[Blob]:
    """The blobs of a manifest that are separate objects."""
    return [blob for blob in manifest.blobs() if blob.content is None] if manifest else []


def steps_of(manifest: Manifest) -> list[str]:
    """Cache keys of the steps that a manifest was made from."""
    inside = (one.key for artifact in manifest.artifacts for one in artifact.contents)
    return list(dict.fromkeys((*manifest.staged, *inside)))
