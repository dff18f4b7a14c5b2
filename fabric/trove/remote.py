"""An artifact store behind a URL: WebDAV, S3 and whatever else obstore reaches."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fabric.trove.backends import ABANDONED, Entry, size_of
from fabric.trove.files import CHUNK

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from obstore import ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")
R = TypeVar("R")

#: How many requests a remote store gets at once.
PARALLEL = 16
#: Seconds of silence after which a server is asked again.
SILENCE = 30
#: How often in a row, with growing pauses, and for how many seconds at most.
RETRIES = 10
PATIENCE = 120
#: Bytes per second below which an upload is given up, and up to which size it just waits.
SLOWEST = 64 * 1024
SMALL = 1024 * 1024


class Remote:
    """Objects behind a URL that obstore understands: http(s) (WebDAV), s3, gs, az, memory.

    How durable a finished upload is, the server decides.  That nobody sees half of one is its
    duty, too: S3 and its like promise it, nginx (and Apache) write to a temporary file and rename
    it once all has come.  Readers check digests in any case.

    ``ca`` is a PEM certificate to be trusted besides the system's, ``login`` is "USER:PASSWORD".
    """

    def __init__(self, url: str, ca: bytes = b"", login: str = "") -> None:
        from urllib.parse import unquote, urlsplit

        import obstore.exceptions

        # obstore raises FileNotFoundError, PermissionError and the like of Python's own, too
        self.trouble: tuple[type[Exception], ...] = (
            obstore.exceptions.BaseError,
            OSError,
            ValueError,
        )
        self._plain = url.startswith(("http:", "https:"))
        #: what a WebDAV server's listings have before our paths; None for stores that list well
        self._base = unquote(urlsplit(url).path).strip("/") if self._plain else None
        self._url = url
        self._ca = ca
        self._login = login
        self._store = self._connect(SILENCE)

    def _connect(self, silence: float) -> ObjectStore:
        """A client that waits so many seconds for the server to say something."""
        import base64
        from datetime import timedelta

        from obstore.store import from_url

        settings: dict[str, Any] = {}
        if not self._url.startswith("memory:"):
            client = settings["client_options"] = {
                "connect_timeout": timedelta(seconds=10),
                "read_timeout": timedelta(seconds=silence),
                "timeout": timedelta(days=1),  # of a whole transfer
            }
            if self._url.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP") == "true":
                client["allow_http"] = True
            if self._ca:
                client["root_certificate"] = self._ca
            if self._login:
                token = base64.b64encode(self._login.encode()).decode()
                client["default_headers"] = {"Authorization": f"Basic {token}"}
            settings["retry_config"] = {
                "max_retries": RETRIES,
                "backoff": {"init_backoff": timedelta(seconds=0.5)},
                "retry_timeout": timedelta(seconds=PATIENCE),
            }
        return from_url(self._url, **settings)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(PARALLEL, thread_name_prefix="store")

    def exist(self, paths: Iterable[str]) -> set[str]:
        wanted = list(paths)
        return {path for path, size in zip(wanted, self._sizes(wanted), strict=True) if size >= 0}

    def _sizes(self, paths: Iterable[str]) -> Iterator[int]:
        """Size of each object in bytes, -1 for one that is not there."""

        def size(path: str) -> int:
            try:
                return self._store.head(path)["size"]
            except FileNotFoundError:
                return -1

        return self._pool.map(size, paths)

    def _heeding(self, call: Callable[[], T]) -> T:
        """Do it so that Ctrl-C is heeded: obstore does not, and only the main thread hears it."""
        if threading.current_thread() is threading.main_thread():
            return self._pool.submit(call).result()
        return call()

    def get(self, path: str) -> bytes:
        return self._heeding(lambda: bytes(self._store.get(path).bytes()))

    def range(self, path: str, offset: int, length: int) -> bytes:
        size = self._heeding(lambda: self._store.head(path))["size"]
        length = min(length, size - offset)
        if length <= 0:
            return b""
        got = self._heeding(lambda: self._store.get_range(path, start=offset, length=length))
        return bytes(got)

    def stream(self, path: str) -> Iterator[bytes]:
        # obstore goes on where a connection broke, as long as the object is the same
        got = self._heeding(lambda: self._store.get(path))
        pieces = iter(got.stream(min_chunk_size=CHUNK))
        while (piece := self._heeding(lambda: next(pieces, None))) is not None:
            yield bytes(piece)

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> None:
        fresh = self._fresh(blobs)
        list(self._pool.map(lambda path: self._upload(path, blobs[path]), fresh))
        self._create(last, content)

    def _upload(self, path: str, data: bytes | Path) -> None:
        size = size_of(data)
        # the client counts as silence also the time in which the server only listens
        store = self._store if size <= SMALL else self._connect(SILENCE + size / SLOWEST)
        if isinstance(data, bytes) or not size:
            store.put(path, data if isinstance(data, bytes) else b"", use_multipart=False)
            return
        if not self._plain:
            store.put(path, data)  # in parts
            return
        # WebDAV has no uploads in parts, and else obstore would have the whole file in memory
        with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            store.put(path, content, use_multipart=False)

    def _fresh(self, blobs: Mapping[str, bytes | Path]) -> list[str]:
        """The blobs to upload: those not there, and those so old that gc may be at them."""

        def needed(path: str) -> bool:
            try:
                there = self._store.head(path)
            except FileNotFoundError:
                return True
            old = there["last_modified"].timestamp() < time.time() - ABANDONED / 2
            return old or there["size"] != size_of(blobs[path])

        wanted = self._pool.map(needed, blobs)
        return [path for path, need in zip(blobs, wanted, strict=True) if need]

    def _create(self, path: str, content: bytes) -> None:
        """Write an object unless it exists; plain servers can only be asked first."""
        from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError

        try:
            self._store.put(path, content, mode="create")
        except AlreadyExistsError:
            pass
        except (NotImplementedError, NotSupportedError, GenericError):
            if not self.exist([path]):
                self._store.put(path, content)

    def delete(self, paths: Iterable[str]) -> None:
        def delete(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._store.delete(path)

        list(self._pool.map(delete, paths))

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        def delete(entry: Entry) -> bool:
            try:
                if self._store.head(entry.path)["last_modified"].timestamp() > entry.time:
                    return False
                self._store.delete(entry.path)
            except FileNotFoundError:
                return False
            return True

        listed = list(entries)
        gone = self._pool.map(delete, listed)
        return [entry for entry, one in zip(listed, gone, strict=True) if one]

    def list(self, prefix: str) -> Iterator[Entry]:
        if self._base is None:
            for page in self._store.list(prefix):
                yield from map(_entry, page)
            return
        # These list a directory, but hardly ever what is below it, and by their own full paths.
        listing = self._store.list_with_delimiter(prefix)
        yield from (_entry(meta, self._base) for meta in listing["objects"])
        for folder in listing["common_prefixes"]:
            inside = _relative(folder, self._base)
            if inside.startswith(prefix + "/"):  # the directory itself is listed, too
                yield from self.list(inside)

    def place(self, path: str) -> Path | None:  # noqa: ARG002
        return None

    def used(self, path: str) -> None:
        """Nothing: such stores remember only when an object was written."""

    def tidy(self) -> None:
        """Nothing: uploads under way have no names here."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._pool.map(function, items)

    def now(self) -> float:
        """By the server's clock, which stamps the entries, whatever this machine's says."""
        path = "clock"
        self._store.put(path, b"")
        return self._store.head(path)["last_modified"].timestamp()


def _entry(meta: ObjectMeta, base: str = "") -> Entry:
    path = _relative(meta["path"], base)
    return Entry(path, meta["size"], meta["last_modified"].timestamp())


def _relative(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")
