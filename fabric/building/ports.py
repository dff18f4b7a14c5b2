"""Defines the interfaces of the artifact store and the sources that building uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from fabric.host.progress import Progress
from fabric.jobs import Blob, Manifest, Source


class Store(Protocol):
    """The artifact store, as building uses it."""

    def manifest(self, key: str) -> Manifest | None: ...

    def manifests(self, keys: Iterable[str]) -> list[Manifest | None]: ...

    def use(self, keys: Iterable[str]) -> None: ...  # record that a build uses these

    def bring(
        self, wanted: Iterable[tuple[str, Blob]], check: Callable[[], None]
    ) -> None: ...  # fetch these blobs (key, blob), which will be opened

    def open(self, blob: Blob, key: str, check: Callable[[], None]) -> BinaryIO: ...  # verified

    def put(self, manifest: Manifest, files: Mapping[str, Path | bytes]) -> None: ...

    def sweep(self) -> None: ...  # remove leftovers of killed processes


class Sources(Protocol):
    """The sources, as building uses them."""

    def export(self, source: Source, report: Progress) -> Path: ...

    def sweep(self) -> None: ...  # as above
