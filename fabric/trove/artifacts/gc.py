"""Decides which objects of an artifact store can be removed, for `Store.gc`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from fabric.errors import DamagedError
from fabric.jobs import Manifest
from fabric.trove.artifacts.backend import Backend, Entry
from fabric.trove.artifacts.manifests import apart, blob_path, key_of, steps_of


class Needs(NamedTuple):
    """The paths that a manifest names: its blobs, and the manifests of steps it was made from."""

    blobs: AbstractSet[str]
    steps: Sequence[str]


class Gone(msgspec.Struct, frozen=True):
    """Numbers and bytes of objects that were removed, or would be."""

    manifests: int = 0
    manifest_bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    #: blobs that no manifest names, and that stay because a manifest may be uploaded yet
    waiting: int = 0
    waiting_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.manifest_bytes + self.blob_bytes


def collect(
    backend: Backend,
    read: Callable[[str], Manifest | None],
    keep: AbstractSet[str],
    now: float,
    older_than: float,
    max_bytes: int | None,
    dry_run: bool,
) -> Gone:
    """Remove unused objects.  ``read`` gives the manifest of a key; ``keep`` has manifests' paths.

    The last use of a manifest is that of its entry, of its record of use, or of a manifest made
    from it, whichever is latest: the inputs of a used system are used, too.
    """
    if not dry_run:
        backend.tidy()
    # blobs first: a blob put later is not in the list, so it is not removed
    blobs = {entry.path: entry for entry in backend.list("blobs")}
    entries = {entry.path: entry for entry in backend.list("manifests") if key_of(entry.path)}
    named = backend.map(lambda path: _needs(path, read), entries)
    needs = dict(zip(entries, named, strict=True))
    used = _used(entries, needs, backend.uses())
    kept = keep | backend.reserved()
    users = Counter(path for each in needs.values() for path in each.blobs)
    total = sum(one.size for one in entries.values())
    total += sum(one.size for path, one in blobs.items() if path in users)
    condemned: list[Entry] = []
    for entry in sorted(entries.values(), key=lambda one: used[one.path]):
        if entry.path in kept or used[entry.path] > now - older_than:
            continue
        if max_bytes is not None and total <= max_bytes:
            break
        condemned.append(entry)
        total -= entry.size
        for path in needs[entry.path].blobs:
            users[path] -= 1
            if not users[path] and path in blobs:
                total -= blobs[path].size
    gone = condemned if dry_run else backend.delete_unused(condemned)
    spared = {path for one in set(condemned) - set(gone) for path in needs[one.path].blobs}
    unnamed = [one for path, one in blobs.items() if not users[path] and path not in spared]
    old = [entry for entry in unnamed if entry.time <= now - backend.grace]
    young = [entry for entry in unnamed if entry.time > now - backend.grace]
    gone_blobs = old if dry_run else backend.delete_unused(old)
    return Gone(
        len(gone),
        sum(entry.size for entry in gone),
        len(gone_blobs),
        sum(entry.size for entry in gone_blobs),
        len(young),
        sum(entry.size for entry in young),
    )


def _needs(path: str, read: Callable[[str], Manifest | None]) -> Needs:
    """The paths named by the manifest at ``path``; none if it is gone or damaged."""
    try:
        manifest = read(key_of(path))
    except DamagedError:
        manifest = None
    if manifest is None:
        return Needs(frozenset(), ())
    # interned, since thousands of manifests mostly name the same paths
    return Needs(
        frozenset(sys.intern(blob_path(blob)) for blob in apart(manifest)),
        tuple(sys.intern(f"manifests/{key}") for key in steps_of(manifest)),
    )


def _used(
    entries: Mapping[str, Entry], needs: Mapping[str, Needs], noted: Mapping[str, float]
) -> dict[str, float]:
    """The last use of each manifest (Unix time)."""
    own = {path: max(entry.time, noted.get(path, 0.0)) for path, entry in entries.items()}
    used: dict[str, float] = {}
    for latest in sorted(own, key=own.__getitem__, reverse=True):
        pending = [latest]
        while pending:
            path = pending.pop()
            if path in entries and path not in used:
                used[path] = own[latest]
                pending.extend(needs[path].steps)
    return used
