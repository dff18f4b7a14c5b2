"""Proves that a worker was given an attempt."""

from __future__ import annotations

import hashlib


class Tokens:
    """Makes the same token for an attempt in every run of the broker that has this secret."""

    __slots__ = ("_fresh",)

    def __init__(self, secret: bytes) -> None:
        # Each token continues from a copy that has digested the secret: half the work.
        self._fresh = hashlib.blake2b(b"attempt ", key=secret, digest_size=7).copy

    def __call__(self, key: str, fence: int, worker: str) -> int:
        proof = self._fresh()
        proof.update(f"{key} {fence} {worker}".encode())
        return int.from_bytes(proof.digest())
