"""The farm's artifact store: `fabric.trove.artifacts.store.Store`, on objects that can be lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from fabric.jobs import Artifact, Blob, Manifest
from fabric.trove.artifacts.backend import Entry, TooLarge, size_of
from fabric.trove.artifacts.manifests import blob_path, decode, key_of, manifest_path
from fabric.trove.artifacts.store import Store

T = TypeVar("T")
R = TypeVar("R")


class Objects:
    """Objects in memory, out of reach at times: a `fabric.trove.artifacts.backend.Backend`."""

    errors: tuple[type[Exception], ...] = (ConnectionError,)
    grace = use_every = 3600.0
    blob_path = staticmethod(blob_path)

    def __init__(self, away: Callable[[], bool], stored: Callable[[str, bytes], None]) -> None:
        """``stored`` is called with the path of each new manifest, and its content."""
        self._away = away
        self._stored = stored
        self.kept: dict[str, bytes] = {}
        self.rotten: set[str] = set()  # paths of blobs that are not what they should be

    def _reach(self) -> dict[str, bytes]:
        if self._away():
            raise ConnectionError("no route to host")
        return self.kept

    def exist(self, paths: Iterable[str]) -> set[str]:
        kept = self._reach()
        return {path for path in paths if kept.get(path)}

    def get(self, path: str, most: int) -> bytes:
        content = self._get(path)
        if len(content) > most:
            raise TooLarge(f"it has {len(content)} bytes")
        return content

    def _get(self, path: str) -> bytes:
        content = self._reach().get(path)
        if content is None:
            raise FileNotFoundError(path)
        return content

    def range(self, path: str, offset: int, length: int) -> bytes:
        return self._get(path)[offset : offset + length]

    def stream(self, path: str) -> Iterator[bytes]:
        yield self._get(path)

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> bool:
        kept = self._reach()
        for path, data in blobs.items():
            if len(kept.get(path, b"")) != size_of(data):
                assert isinstance(data, bytes)
                kept[path] = data
                self.rotten.discard(path)
        first = not kept.get(last)
        self.put_equal({}, last, content)
        return first

    def put_equal(self, sizes: Mapping[str, int], last: str, content: bytes) -> None:
        kept = self._reach()
        for path, size in sizes.items():
            if len(kept.get(path, b"")) != size:
                raise FileNotFoundError(path)
        if not kept.get(last):
            kept[last] = content
            self._stored(last, content)

    def write(self, path: str, content: bytes) -> None:
        self._reach()[path] = content

    def delete(self, paths: Iterable[str]) -> None:
        kept = self._reach()
        for path in paths:
            kept.pop(path, None)

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        raise NotImplementedError  # nobody collects garbage here

    def list(self, prefix: str) -> Iterator[Entry]:
        kept = self._reach()
        return (Entry(path, len(kept[path]), 0.0) for path in kept if path.startswith(prefix))

    def place(self, path: str) -> None:
        pass

    def use(self, paths: Collection[str]) -> None:
        pass

    def uses(self) -> Mapping[str, float]:
        return {}

    def flush(self, timeout: float) -> None:
        pass

    def reserve(self, paths: Collection[str]) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()

    def reserved(self) -> set[str]:
        return set()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(function, items)

    def now(self) -> float:
        return 0.0

    def tidy(self) -> None:
        pass


class Warehouse:
    """What is built, and what becomes of it."""

    def __init__(
        self, away: Callable[[], bool], scratch: Path, outputs: Mapping[str, bytes]
    ) -> None:
        """``outputs``: by key, too large to be kept in manifests."""
        self._objects = Objects(away, self._stored)
        self._scratch = scratch
        self._outputs = outputs
        self.wrong = ""  # what must not be in it
        self.built: set[str] = set()  # keys of what was whole at some time
        self._damaged: set[str] = set()  # and of what was not

    def open(self) -> Store:
        """As a process of its own has it."""
        return Store("warehouse", self._scratch, backend=self._objects)

    def keep(self, store: Store, key: str, name: str, log: bytes) -> None:
        """Store what was built; the first one wins.  StoreError if that cannot be done."""
        data = self._outputs[key]
        blob = Blob.of(data)
        artifact = Artifact(f"s{name[1:]}", blob)
        manifest = Manifest(
            key=key, kind="chunk", name=artifact.name, arch="x86_64", artifacts=(artifact,),
            log=Blob.of(log), log_name=f"build-step-{name}.log",
        )  # fmt: skip
        store.put(manifest, {blob.sha256: data})

    def _stored(self, path: str, content: bytes) -> None:
        """A step was built, or is equal to another: it is what its inputs give."""
        key = key_of(path)
        blob = decode(content, key).artifacts[0].blob
        if blob != Blob.of(self._outputs[key]):
            self.wrong = f"{key} is stored with another output than its inputs give"
        self.built.add(key)
        if self._blob_of(key) in self._objects.rotten:
            self._damaged.add(key)

    def _blob_of(self, key: str) -> str:
        return blob_path(Blob.of(self._outputs[key]))

    def has(self, key: str) -> bool:
        """Whether it has this for certain: what was damaged once may be damaged still."""
        return key in self.built and key not in self._damaged

    def damage(self, rng: random.Random) -> str | None:
        """Have an artifact rot, or lose it; its key, None if there is none."""
        kept = self._objects.kept
        there = [key for key in self._outputs if manifest_path(key) in kept]
        if not there:
            return None
        if rng.random() < 0.2:
            self._damage_hint(rng)
        key = rng.choice(there)
        path = rng.choice((manifest_path(key), self._blob_of(key)))
        self._damaged.add(key)
        if path == self._blob_of(key):
            self._objects.rotten.add(path)
            self._damaged.update(one for one in there if self._blob_of(one) == path)
        self._spoil(path, rng)
        return key

    def _damage_hint(self, rng: random.Random) -> None:
        if hints := [path for path in self._objects.kept if path.startswith("hints/")]:
            self._spoil(rng.choice(hints), rng)

    def _spoil(self, path: str, rng: random.Random) -> None:
        kept = self._objects.kept
        if rng.random() < 0.3:
            kept.pop(path, None)
        elif content := kept.get(path):
            at = rng.randrange(len(content))
            kept[path] = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
