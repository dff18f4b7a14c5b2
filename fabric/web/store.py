"""Reads the artifact store for pages, in threads: manifests, and an index of all of them."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TypeVar

import msgspec

from fabric import bounds
from fabric.client.changes import Change, Comparison, Records
from fabric.errors import FabricError, StoreError
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

#: Seconds after which the store is listed again, for a page that needs it.
LIST_EVERY = 60.0
#: Seconds after which it is asked again for a manifest that it had, or that it did not have.
KEEP, LACK = 60.0, 3.0
#: Manifests that are kept, and the bytes of the largest.
MANIFESTS, LARGEST = 100, bounds.MIB
#: Seconds that a page waits for the index; then it shows what is known.
PATIENCE = 2.0
#: Threads that read it, and seconds after which a page waits no more for one of them.
THREADS, LONGEST = 4, 10.0
#: Manifests that are read at a time.
AT_ONCE = 200
#: Explanations of changes that are kept.
KEPT = 1000


T = TypeVar("T")


class Built(msgspec.Struct, frozen=True, gc=False):
    """A built step, in brief: there may be many thousands."""

    key: str
    kind: str
    name: str
    arch: str
    built: float  # Unix time; 0: not recorded
    seconds: float  # wall time of the build
    builder: str  # name of the worker
    repo: str  # of its source, as in the definitions; "" if it has none
    ref: str
    size: int  # bytes of its artifacts
    original: bool  # it was built itself, and not a second time to compare


class Index:
    """The steps in the store that were built or used last, by key and by name.

    Listing and reading go on in a thread; meanwhile the pages show what is known.
    """

    def __init__(self, store: Callable[[], Store], threads: Executor | None = None) -> None:
        self._store = store
        self._threads = threads
        self.steps: dict[str, Built] = {}
        self._by_name: dict[tuple[str, str, str], list[Built]] = {}
        self._task: asyncio.Task[None] | None = None
        self._due = float("-inf")
        #: manifests that are still to be read
        self.unread = 0
        #: why the store cannot be read; "" if it can
        self.error = ""

    async def refresh(self) -> None:
        """Take notice of what was built lately.  Waits for it only for a while."""
        if self._task is None and time.monotonic() >= self._due:
            self._task = asyncio.create_task(self._read())
        if self._task is not None:
            await asyncio.wait([self._task], timeout=PATIENCE)

    def builds(self, kind: str, name: str, arch: str) -> list[Built]:
        """The builds of a step of that name, the last one first."""
        return self._by_name.get((kind, name, arch), [])

    def of_kind(self, kind: str) -> Iterator[list[Built]]:
        """The builds of each step of a kind, the last one first."""
        return (found for (each, _, _), found in self._by_name.items() if each == kind)

    async def _read(self) -> None:
        try:
            await self._read_new(await self._call(self._list))
            self.error = ""
        except FabricError as error:
            self.error = str(error)
        finally:
            self.unread = 0
            self._due = time.monotonic() + LIST_EVERY
            self._task = None

    async def _read_new(self, keys: set[str]) -> None:
        for key in self.steps.keys() - keys:
            self._remove(self.steps.pop(key))
        new = [key for key in keys if key not in self.steps]
        self.unread = len(new)
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            for built in await self._call(partial(self._briefly, some)):
                self._add(built)
            self.unread -= len(some)

    def _call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _list(self) -> set[str]:
        used = self._store().used()
        newest = sorted(used, key=lambda key: used[key], reverse=True)
        return set(newest[: bounds.WEB_MANIFESTS])

    def _briefly(self, keys: Iterable[str]) -> list[Built]:
        store = self._store()
        return [brief(one) for one in store.each(store.whole_manifest, keys) if one is not None]

    def _add(self, built: Built) -> None:
        self.steps[built.key] = built
        found = self._by_name.setdefault((built.kind, built.name, built.arch), [])
        insort(found, built, key=lambda one: -one.built)

    def _remove(self, built: Built) -> None:
        name = (built.kind, built.name, built.arch)
        self._by_name[name].remove(built)
        if not self._by_name[name]:
            del self._by_name[name]


class StoreReader:
    """Opens the store when it is first needed.  StoreError if it cannot be read.

    Its threads are its own: a store that hangs stops no other work.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open = open_store
        self._threads = ThreadPoolExecutor(THREADS, "store")
        self.index = Index(lambda: self.store, self._threads)
        self._changes: dict[tuple[str, str], tuple[Change, ...]] = {}
        #: key -> (when the store is asked again, its answer)
        self._manifests: dict[str, tuple[float, Manifest | None]] = {}

    @cached_property
    def store(self) -> Store:
        return self._open()

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """The result of a function that reads the store.  StoreError also if that takes long."""
        call = partial(function, *arguments)
        try:
            async with asyncio.timeout(LONGEST):
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except TimeoutError:
            raise StoreError(
                f"the artifact store does not answer within {LONGEST:.0f} s; is its server up?"
            ) from None

    async def manifest(self, key: str) -> Manifest | None:
        """The manifest of a step; None if it is not in the store, or damaged.

        A live page asks each second, and is told what was true a while ago.
        """
        due, manifest = self._manifests.get(key, (0.0, None))
        if time.monotonic() >= due:
            manifest, size = await self.call(self._read, key)
            self._manifests.pop(key, None)
            while len(self._manifests) >= MANIFESTS:
                del self._manifests[next(iter(self._manifests))]
            if size <= LARGEST:
                again = time.monotonic() + (KEEP if manifest else LACK)
                self._manifests[key] = again, manifest
        return manifest

    def _read(self, key: str) -> tuple[Manifest | None, int]:
        """A manifest, and its size in bytes."""
        manifest = self.store.whole_manifest(key)
        return manifest, len(msgspec.json.encode(manifest)) if manifest else 0

    async def former(self, manifest: Manifest) -> Built | None:
        """The last build of a step of the same name before this one; None if none is known."""
        await self.index.refresh()
        for built in self.index.builds(manifest.kind, manifest.name, manifest.arch):
            if built.original and built.key != manifest.key and built.built < manifest.built:
                return built
        return None

    async def changes(self, name: str, old: str, new: str) -> tuple[Change, ...]:
        """Why two builds of the step ``name`` have different keys."""

        def compare() -> tuple[Change, ...]:
            comparison = Comparison(Records(self.store), Records(self.store), lambda *_: "")
            return comparison.changes(name, old, new)

        if (old, new) not in self._changes:
            if len(self._changes) >= KEPT:
                self._changes.clear()
            self._changes[old, new] = await self.call(compare)
        return self._changes[old, new]


def brief(manifest: Manifest) -> Built:
    """A manifest in brief."""
    return Built(
        key=manifest.key,
        kind=manifest.kind,
        name=manifest.name,
        arch=manifest.arch,
        built=manifest.built,
        seconds=manifest.seconds,
        builder=manifest.builder,
        repo=manifest.metadata.get("repo", ""),
        ref=manifest.metadata.get("ref", ""),
        size=sum(each.blob.size for each in manifest.artifacts if each.blob is not None),
        original=not manifest.origin and not manifest.rebuild_of,
    )
