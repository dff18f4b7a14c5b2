"""Decides which objects of an artifact store can be removed, for `Store.gc`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from fabric.bounds import HINT
from fabric.jobs import Manifest
from fabric.trove.artifacts.backend import Backend, Entry, TooLarge
from fabric.trove.artifacts.manifests import (
    apart,
    blob_path,
    countersignature_path,
    decode_hint,
    key_of,
    manifest_path,
    steps_of,
)


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
    hint_bytes: int = 0  # of hints and countersignatures

    @property
    def bytes(self) -> int:
        return self.manifest_bytes + self.blob_bytes + self.hint_bytes


def collect(
    backend: Backend,
    read: Callable[[str], Manifest | None],
    keep: AbstractSet[str],
    now: float,
    older_than: float,
    max_bytes: int | None,
    dry_run: bool,
    only: AbstractSet[str] | None = None,
) -> Gone:
    """Remove unused objects.  ``read`` gives the manifest of a key, None for one that is gone or
    damaged; ``keep`` has manifests' paths.  With ``only``, also paths of manifests, nothing but
    these and their blobs is removed.

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
        if only is not None and entry.path not in only:
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
    if only is not None:
        theirs = {path for one in gone for path in needs[one.path].blobs}
        unnamed = [one for one in unnamed if one.path in theirs]
    old = [entry for entry in unnamed if entry.time <= now - backend.grace]
    young = [entry for entry in unnamed if entry.time > now - backend.grace]
    if not dry_run:
        old = _without_new(old, backend, read, entries)
    gone_blobs = old if dry_run else backend.delete_unused(old)
    hints = []
    if only is None:
        gone_paths = {entry.path for entry in gone}
        hints = _hints_to_nothing(backend, entries.keys(), gone_paths)
        hints += _countersigned_nothing(backend, entries.keys(), gone_paths)
    elif not dry_run:
        backend.delete(countersignature_path(key_of(entry.path)) for entry in gone)
    if not dry_run:
        backend.delete(entry.path for entry in hints)
    return Gone(
        len(gone),
        sum(entry.size for entry in gone),
        len(gone_blobs),
        sum(entry.size for entry in gone_blobs),
        len(young),
        sum(entry.size for entry in young),
        sum(entry.size for entry in hints),
    )


def _without_new(
    blobs: Sequence[Entry],
    backend: Backend,
    read: Callable[[str], Manifest | None],
    listed: Mapping[str, Entry],
) -> list[Entry]:
    """The blobs that no manifest names which was written since ``listed``.

    Such a manifest may name blobs of before: it is that of a step with equal contents.
    """
    paths = (entry.path for entry in backend.list("manifests") if key_of(entry.path))
    fresh = backend.map(lambda path: _needs(path, read), [p for p in paths if p not in listed])
    named = {path for each in fresh for path in each.blobs}
    return [entry for entry in blobs if entry.path not in named]


def _hints_to_nothing(
    backend: Backend, listed: AbstractSet[str], gone: AbstractSet[str]
) -> list[Entry]:
    """Hints that name no manifest, or one of ``gone``; ``listed`` are paths that existed."""

    def target(path: str) -> str:
        try:
            key = decode_hint(backend.get(path, HINT), path.removeprefix("hints/"))
        except (FileNotFoundError, TooLarge, ValueError):
            return ""
        return f"manifests/{key}"

    try:
        hints = list(backend.list("hints"))
    except FileNotFoundError:
        return []
    targets = list(backend.map(target, [entry.path for entry in hints]))
    new = backend.exist({path for path in targets if key_of(path)} - listed)
    there = (listed - gone) | new
    return [entry for entry, path in zip(hints, targets, strict=True) if path not in there]


def _countersigned_nothing(
    backend: Backend, listed: AbstractSet[str], gone: AbstractSet[str]
) -> list[Entry]:
    """Countersignatures of no manifest, or of one of ``gone``; ``listed`` are former paths."""
    try:
        found = [entry for entry in backend.list("countersigned") if key_of(entry.path)]
    except FileNotFoundError:
        return []
    paths = [manifest_path(key_of(entry.path)) for entry in found]
    there = (listed - gone) | backend.exist(set(paths) - listed)
    return [entry for entry, path in zip(found, paths, strict=True) if path not in there]


def _needs(path: str, read: Callable[[str], Manifest | None]) -> Needs:
    """The paths named by the manifest at ``path``; none if it is gone or damaged."""
    manifest = read(key_of(path))
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
