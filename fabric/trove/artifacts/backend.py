"""Defines the interface between the artifact store and the place that keeps its bytes.

Backends speak of objects by relative path (``manifests/<key>``).  An object is seen whole or not
at all.  What is not there is a `FileNotFoundError`; every other trouble of a backend is one of
its ``errors``, which `fabric.trove.artifacts.store` turns into a `StoreError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

T = TypeVar("T")
R = TypeVar("R")


class TooLarge(Exception):
    """An object has more bytes than its reader takes."""


class Entry(msgspec.Struct, frozen=True):
    """An object: its path, size in bytes, and when it was last written or used (Unix time)."""

    path: str
    size: int
    time: float


class Backend(Protocol):
    """What the store needs of a place to keep objects."""

    #: exceptions that mean trouble with this backend, other than FileNotFoundError
    errors: tuple[type[Exception], ...]
    #: seconds that a blob which no manifest names stays: the upload of its manifest may be coming
    grace: float
    #: seconds in which a second use of an object is not noted
    use_every: float

    def exist(self, paths: Iterable[str]) -> set[str]:
        """Those of ``paths`` that are there, and not empty."""

    def get(self, path: str, most: int) -> bytes:
        """An object of ``most`` bytes at most; else TooLarge."""

    def range(self, path: str, offset: int, length: int) -> bytes:
        """Bytes ``offset`` to ``offset + length``, fewer at the end of the object."""

    def stream(self, path: str) -> Iterator[bytes]: ...

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> None:
        """Write all blobs, then ``last``, which is left alone if it is there, and not empty.

        A blob that is there with the right size is not written again, but counts as used now.
        A file that is given may become the object itself: nobody may write to it any more.
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Remove them; what is not there is no error."""

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove the entries that nobody has used since they were listed, or has reserved; return
        those removed.
        """

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path starts with ``prefix`` + "/"."""

    def place(self, path: str) -> Path | None:
        """The file that holds the object, where objects are files of this machine."""

    def use(self, paths: Collection[str]) -> None:
        """Note that these manifests are of use now; a hint, which may fail in silence."""

    def uses(self) -> Mapping[str, float]:
        """When manifests were used (Unix time), where their own times do not tell."""

    def flush(self, timeout: float) -> None:
        """Have notes of use reach the store; wait so many seconds for that at most."""

    def reserve(self, paths: Collection[str]) -> AbstractContextManager[None]:
        """Meanwhile `delete_unused` of any process spares these, be they there yet or not."""

    def reserved(self) -> set[str]:
        """All that is reserved."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply ``function``, several at a time where that is of use, in the order of items."""

    def now(self) -> float:
        """The time (Unix) by the clock that stamps the entries."""

    def tidy(self) -> None:
        """Remove what dead writers left behind, unless that has to wait for live ones."""


def size_of(data: bytes | Path) -> int:
    """Bytes of what is to be put."""
    return data.stat().st_size if isinstance(data, Path) else len(data)
