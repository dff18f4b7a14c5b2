"""Countersigns built steps in a store, and tells who has countersigned one.

``countersigned/<cache key>`` is a DSSE envelope with a `Countersignature`.  It is beside the
manifest, not in its envelope: a revoked key refuses what it signed, and a controller that gets a
new key must not refuse all that its workers have built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fabric.errors import DamagedError
from fabric.jobs import Manifest
from fabric.trove.artifacts.contents import output_of
from fabric.trove.artifacts.manifests import stored_digest
from fabric.trove.artifacts.store import Sealed, Store
from fabric.trust.countersignature import KIND, Countersignature, decode, encode
from fabric.trust.seal import MANIFEST, UnsignedError

if TYPE_CHECKING:
    from fabric.trust.signing import PublicKey


class Countersigned(NamedTuple):
    """What was stated of a step, and the trusted keys that signed it."""

    what: Countersignature
    by: list[PublicKey]


def countersign(store: Store, made: Countersignature) -> bool:
    """Countersign a step with the store's own key; returns whether that was done.

    It is not if the store has another manifest than ``made`` says, nor if the own key has signed
    that, since it would say nothing new.  SigningProblem if there is no key, nor can be.
    """
    found = _sealed(store, made.key)
    if found is None or store.seal is None or stored_digest(found.data) != made.manifest:
        return False
    if store.seal.own_id in {by.id for by in store.seal.opened(MANIFEST, found.data)[1]}:
        return False
    store.put_countersignature(made.key, store.seal.close(KIND, encode(made)))
    return True


def countersign_equal(store: Store, key: str) -> bool:
    """The same for a step that has the output of another: if the own key countersigned that."""
    found = _sealed(store, key)
    if found is None or store.seal is None or not found.manifest.origin:
        return False
    origin = store.whole_manifest(found.manifest.origin)
    if origin is None or output_of(origin) != output_of(found.manifest):
        return False
    known = countersigned(store, origin)
    if known is None or store.seal.own_id not in {by.id for by in known.by}:
        return False
    made = Countersignature(key, stored_digest(found.data), origin=origin.key)
    store.put_countersignature(key, store.seal.close(KIND, encode(made)))
    return True


def countersigned(store: Store, manifest: Manifest) -> Countersigned | None:
    """Who has countersigned a manifest; None if nobody whose key counts, or another one."""
    if store.seal is None:
        return None
    found = _sealed(store, manifest.key)
    data = store.countersignature(manifest.key)
    if found is None or found.manifest != manifest or data is None:
        return None
    try:
        content, by = store.seal.opened(KIND, data)
        what = decode(content)
    except ValueError:
        return None
    # the manifest, and so its digest, contains the key
    return Countersigned(what, by) if what.manifest == stored_digest(found.data) else None


def _sealed(store: Store, key: str) -> Sealed | None:
    try:
        return store.sealed(key)
    except (UnsignedError, DamagedError):
        return None
