"""Defines the interfaces of the artifact store and the sources that building uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from fabric.host.progress import Moved, Progress
from fabric.jobs import Blob, Manifest, Source

if TYPE_CHECKING:
    from fabric.trove.sources.changes import Change


class Store(Protocol):
    """The artifact store, as building uses it."""

    def manifest(self, key: str) -> Manifest | None: ...

    def manifests(self, keys: Iterable[str]) -> list[Manifest | None]: ...

    def use(self, keys: Iterable[str]) -> None: ...  # record that a build uses these

    def bring(
        self, wanted: Iterable[tuple[str, Blob]], check: Callable[[], None], moved: Moved
    ) -> None: ...  # fetch these blobs (key, blob), which will be opened

    def open(self, blob: Blob, key: str, check: Callable[[], None]) -> BinaryIO: ...  # verified

    def put(
        self, manifest: Manifest, files: Mapping[str, Path | bytes], sealed: bytes = b""
    ) -> bool: ...  # whether it is the first of its key

    def put_countersignature(self, key: str, content: bytes) -> None: ...

    def sweep(self) -> None: ...  # remove leftovers of killed processes


class Sources(Protocol):
    """The sources, as building uses them."""

    def export(self, source: Source, report: Progress) -> Path: ...

    def changes(self, source: Source, since: str) -> Iterator[Change]: ...  # since that tree

    def sweep(self) -> None: ...  # as above
