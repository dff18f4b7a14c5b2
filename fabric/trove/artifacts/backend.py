"""Defines the interface between the artifact store and the backend that keeps its bytes.

Objects have relative paths (``manifests/<key>``), and are visible whole or not at all.  A missing
object raises FileNotFoundError; all other failures of a backend are among its ``errors``, which
`fabric.trove.artifacts.store` turns into a `StoreError`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from fabric.jobs import Blob

T = TypeVar("T")
R = TypeVar("R")


class TooLarge(Exception):
    """An object has more bytes than its reader accepts."""


class Entry(msgspec.Struct, frozen=True):
    """An object: its path, size in bytes, and when it was last written or used (Unix time)."""

    path: str
    size: int
    time: float


class Haste(msgspec.Struct, frozen=True):
    """How long a client of a remote store waits, in seconds, where nothing depends on it."""

    answer: float  # for a connection, and for each piece of a response
    whole: float  # for a whole response


class Backend(Protocol):
    """Keeps the objects of a store."""

    #: exceptions of this backend, other than FileNotFoundError
    errors: tuple[type[Exception], ...]
    #: seconds that a blob without a manifest stays, since its manifest may be uploaded yet
    grace: float
    #: seconds in which a second use of an object is not recorded
    use_every: float

    def blob_path(self, blob: Blob) -> str:
        """The path of a blob."""

    def exist(self, paths: Iterable[str]) -> set[str]:
        """The ``paths`` of objects that exist and are not empty."""

    def get(self, path: str, most: int) -> bytes:
        """An object; TooLarge if it has more than ``most`` bytes."""

    def range(self, path: str, offset: int, length: int) -> bytes:
        """Bytes ``offset`` to ``offset + length``, fewer at the end of the object."""

    def stream(self, path: str) -> Iterator[bytes]: ...

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> bool:
        """Write all blobs, then ``last``, unless that exists and is not empty; return whether it
        was written.

        A blob that exists with the right size is not written again, but counts as used now.  A
        given file may become the object itself, so it must not change afterwards.
        """

    def put_equal(self, sizes: Mapping[str, int], last: str, content: bytes) -> None:
        """Write ``last``, unless that exists, for blobs that exist; they count as used now.

        FileNotFoundError if a blob is missing, or has another size.  A power cut may lose or empty
        ``last``.
        """

    def write(self, path: str, content: bytes) -> None:
        """Write or replace a small object, which a power cut may lose or empty."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; missing ones are no error."""

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove entries, except those reserved, or used since they were listed; return those
        removed.
        """

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path starts with ``prefix`` + "/"."""

    def place(self, path: str) -> Path | None:
        """The object's file, if objects are files of this machine."""

    def use(self, paths: Collection[str]) -> None:
        """Record that these manifests are used now: a hint, which may fail silently."""

    def uses(self) -> Mapping[str, float]:
        """Path -> last use (Unix time) of manifests, unless their own times show it."""

    def flush(self, timeout: float) -> None:
        """Upload records of use; wait at most so many seconds."""

    def reserve(self, paths: Collection[str]) -> AbstractContextManager[None]:
        """Meanwhile `delete_unused` of any process spares these paths; they need not exist."""

    def reserved(self) -> set[str]:
        """All reserved paths."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply ``function``, in parallel if that is faster; results are in the order of items."""

    def now(self) -> float:
        """The time (Unix) by the clock of the entries' times."""

    def tidy(self) -> None:
        """Remove leftovers of dead writers, unless that requires waiting for live ones."""


def basic(login: str) -> str:
    """The HTTP header Authorization of a login, "USER:PASSWORD"."""
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def size_of(data: bytes | Path) -> int:
    """The size of an object to be put, in bytes."""
    return data.stat().st_size if isinstance(data, Path) else len(data)
