"""Lists the built steps of a store: their sizes, times, and what needs them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property

import msgspec

from fabric.digest import PREFIX
from fabric.jobs import Manifest
from fabric.trove.artifacts.manifests import apart, steps_of
from fabric.trove.artifacts.store import Store


class Built(msgspec.Struct, frozen=True):
    """A built step, in brief: there may be many thousands."""

    key: str
    kind: str
    name: str
    arch: str
    size: int  # bytes of all its blobs
    built: float  # Unix time; 0: not recorded
    used: float  # Unix time
    origin: str
    rebuild_of: str
    blobs: tuple[tuple[str, int], ...]  # digests and sizes of those that other steps may share
    steps: tuple[str, ...]  # keys of the steps that it was made from


class Catalogue:
    """All built steps of a store, by key.  StoreError if they cannot be read."""

    def __init__(self, store: Store) -> None:
        used = store.used()
        found = zip(used, store.each(store.whole_manifest, used), strict=True)
        self.steps: Mapping[str, Built] = {
            key: brief(manifest, used[key]) for key, manifest in found if manifest is not None
        }
        #: steps whose manifests are damaged, or were removed meanwhile
        self.unread: Collection[str] = used.keys() - self.steps.keys()

    def select(self, patterns: Iterable[str]) -> list[Built]:
        """The steps whose names match one of the patterns, or whose keys begin with one.

        All of them without patterns; in the order of names, the last used of a name first.
        """
        chosen = list(patterns)
        found = [one for one in self.steps.values() if not chosen or _matches(one, chosen)]
        return sorted(found, key=lambda one: (one.name, one.kind, -one.used, one.key))

    def systems(self, key: str) -> list[str]:
        """Names of the systems in the store that contain a step, or were built with it."""
        return sorted(name for name, keys in self._inside.items() if key in keys)

    def users(self, key: str) -> Iterator[Built]:
        """The steps that were made from a step."""
        return (one for one in self.steps.values() if key in one.steps)

    def equals(self, key: str) -> Iterator[Built]:
        """The steps that have the output of a step without a build of their own."""
        return (one for one in self.steps.values() if one.origin == key)

    def sharing(self, key: str) -> Iterator[Built]:
        """Other steps that share a blob with a step."""
        blobs = set(self.steps[key].blobs) if key in self.steps else set()
        return (
            one for one in self.steps.values() if one.key != key and not blobs.isdisjoint(one.blobs)
        )

    @cached_property
    def _inside(self) -> dict[str, set[str]]:
        """By the name of a system: the keys of all that any build of it was made from."""
        found: dict[str, set[str]] = {}
        for system in self.steps.values():
            if system.kind == "system":
                pending = [*system.steps]
                inside = found.setdefault(system.name, set())
                while pending:
                    key = pending.pop()
                    if key not in inside:
                        inside.add(key)
                        pending += self.steps[key].steps if key in self.steps else ()
        for stratum in self.steps.values():  # a system names chunks only
            if stratum.kind == "stratum":
                for inside in found.values():
                    if inside.issuperset(stratum.steps):
                        inside.add(stratum.key)
        return found


def bytes_of(steps: Collection[Built]) -> int:
    """The bytes of all blobs of some steps; a blob of several of them counts once."""
    shared = dict(blob for one in steps for blob in one.blobs)
    own = sum(one.size - sum(size for _, size in one.blobs) for one in steps)
    return own + sum(shared.values())


def brief(manifest: Manifest, used: float) -> Built:
    """A step in brief."""
    return Built(
        key=manifest.key,
        kind=manifest.kind,
        name=manifest.name,
        arch=manifest.arch,
        size=sum(blob.size for blob in manifest.blobs()),
        built=manifest.built,
        used=used,
        origin=manifest.origin,
        rebuild_of=manifest.rebuild_of,
        blobs=tuple((blob.sha256, blob.size) for blob in apart(manifest)),
        steps=tuple(map(sys.intern, steps_of(manifest))),
    )


def _matches(one: Built, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(one.name, pattern) or (len(pattern) >= PREFIX and one.key.startswith(pattern))
        for pattern in patterns
    )
