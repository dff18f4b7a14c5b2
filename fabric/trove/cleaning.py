"""Which objects of an artifact store can go: see `Store.gc`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from fabric.trove.backends import ABANDONED, Backend, Entry

#: Longest that gc waits with a blob that no manifest names: an upload may be under way.
GRACE = ABANDONED


def collect(
    backend: Backend,
    blobs_of: Callable[[str], AbstractSet[str]],
    keep: AbstractSet[str],
    now: float,
    older_than: float,
    max_bytes: int | None,
    dry_run: bool,
) -> tuple[int, int, int]:
    """Remove what can go; return how many manifests, blobs and bytes that were.

    ``blobs_of`` gives the paths of the blobs that the manifest of a key names.
    """
    if not dry_run:
        backend.tidy()
    # blobs first: a blob put after this is not in the list, so cannot be removed
    blobs = {entry.path: entry for entry in backend.list("blobs")}
    entries = sorted(backend.list("manifests"), key=lambda one: one.time)
    named = backend.map(blobs_of, map(_key, entries))
    needs = {entry.path: paths for entry, paths in zip(entries, named, strict=True)}
    users = Counter(path for paths in needs.values() for path in paths)
    total = sum(one.size for one in entries)
    total += sum(one.size for path, one in blobs.items() if path in users)
    condemned: list[Entry] = []
    for entry in entries:
        kept = _key(entry) in keep or entry.time > now - older_than
        if kept or (max_bytes is not None and total <= max_bytes):
            continue
        condemned.append(entry)
        total -= entry.size
        for path in needs[entry.path]:
            users[path] -= 1
            if not users[path] and path in blobs:
                total -= blobs[path].size
    gone = condemned if dry_run else backend.delete_unused(condemned)
    spared = {path for one in set(condemned) - set(gone) for path in needs[one.path]}
    unnamed = [
        entry
        for path, entry in blobs.items()
        if not users[path] and path not in spared and entry.time <= now - GRACE
    ]
    gone_blobs = unnamed if dry_run else backend.delete_unused(unnamed)
    size = sum(entry.size for entry in (*gone, *gone_blobs))
    return len(gone), len(gone_blobs), size


def _key(manifest: Entry) -> str:
    return manifest.path.rpartition("/")[2]
