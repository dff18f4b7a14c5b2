"""Keeps an artifact store behind a URL: WebDAV, S3 and others that obstore supports.

Without obstore, it is a WebDAV server.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fabric.bounds import RESERVED, UPLOAD, USE_LIST, USES_KEPT
from fabric.host.pool import Pool
from fabric.host.shared_files import CHUNK
from fabric.trove.artifacts.backend import Entry, Haste, TooLarge, basic, size_of
from fabric.trove.artifacts.manifests import blob_path
from fabric.trove.artifacts.uses import Uses, keys_in

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")
R = TypeVar("R")

#: Number of parallel requests to a remote store.
PARALLEL = 16
#: Seconds of silence after which a request is repeated.
SILENCE = 30
#: Most repetitions, with growing pauses, and most seconds of them.
RETRIES = 10
PATIENCE = 120
#: Seconds to connect, and of a whole transfer.
CONNECT = 10
WHOLE = 24 * 3600
#: Bytes per second below which an upload is cancelled, and the size up to which it is not.
SLOWEST = 64 * 1024
SMALL = 1024 * 1024


class Remote:
    """Objects behind a URL that obstore understands: http(s) (WebDAV), s3, gs, az, memory.

    The server determines how durable a finished upload is, and that nobody sees half of one: S3 and
    the like guarantee it; nginx and Apache write to a temporary file and rename it at the end.
    Readers check digests in any case.

    ``ca`` is a PEM certificate to be trusted besides the system's, ``login`` is "USER:PASSWORD".
    Records of use are collected in the folder ``notes`` (`fabric.trove.artifacts.uses`).
    ``haste`` bounds reading more closely.
    """

    blob_path = staticmethod(blob_path)
    grace = float(UPLOAD)
    use_every = 3600.0

    def __init__(
        self,
        url: str,
        notes: Path,
        ca: bytes = b"",
        login: str = "",
        haste: Haste | None = None,
    ) -> None:
        from urllib.parse import unquote, urlsplit

        self._plain = url.startswith(("http:", "https:"))
        try:
            from obstore import exceptions
        except ImportError:
            if not self._plain:
                raise
            from fabric.trove.artifacts.webdav_answers import DavError

            self._own = True
            self.errors: tuple[type[Exception], ...] = (DavError, OSError, ValueError)
        else:
            self._own = False
            # obstore also raises exceptions of Python, such as FileNotFoundError
            self.errors = (exceptions.BaseError, OSError, ValueError)
        #: the prefix of paths in a WebDAV server's listings; None for other stores
        self._base = unquote(urlsplit(url).path).strip("/") if self._plain else None
        self._url = url
        self._ca = ca
        self._login = login
        self._haste = haste
        self._store = self._connect(SILENCE)
        self._uses = Uses(notes, self._upload)

    def _connect(self, silence: float) -> ObjectStore:
        """A client that waits at most so many seconds for a response."""
        if self._own:
            return self._python(silence)
        from datetime import timedelta

        from obstore.store import from_url

        settings: dict[str, Any] = {}
        if not self._url.startswith("memory:"):
            client = settings["client_options"] = {
                "connect_timeout": timedelta(seconds=CONNECT),
                "read_timeout": timedelta(seconds=silence),
                "timeout": timedelta(seconds=WHOLE),
            }
            if haste := self._haste:
                answer = timedelta(seconds=haste.answer)
                client |= {"connect_timeout": answer, "read_timeout": answer}
                client["timeout"] = timedelta(seconds=haste.whole)
            if self._url.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP") == "true":
                client["allow_http"] = True
            if self._ca:
                client["root_certificate"] = self._ca
            if self._login:
                client["default_headers"] = {"Authorization": basic(self._login)}
            settings["retry_config"] = {
                "max_retries": 0 if self._haste else RETRIES,
                "backoff": {"init_backoff": timedelta(seconds=0.5)},
                "retry_timeout": timedelta(seconds=PATIENCE),
            }
        return from_url(self._url, **settings)

    def _python(self, silence: float) -> ObjectStore:
        from fabric.trove.artifacts.webdav import Patience, WebDav

        patience = Patience(CONNECT, silence, WHOLE, RETRIES, PATIENCE)
        if haste := self._haste:
            patience = Patience(haste.answer, haste.answer, haste.whole, 0, 0)
        return cast("ObjectStore", WebDav(self._url, self._ca, self._login, patience))

    @cached_property
    def _pool(self) -> Pool:
        return Pool(PARALLEL, "store")

    @cached_property
    def _outer(self) -> Pool:
        """The threads of `map`: its functions wait for requests of the other pool."""
        return Pool(PARALLEL, "store-map")

    def exist(self, paths: Iterable[str]) -> set[str]:
        wanted = list(paths)
        return {path for path, size in zip(wanted, self._sizes(wanted), strict=True) if size}

    def _sizes(self, paths: Iterable[str]) -> Iterator[int]:
        """The size of each object in bytes, 0 for a missing one."""

        def size(path: str) -> int:
            try:
                return self._store.head(path)["size"]
            except FileNotFoundError:
                return 0

        return self._pool.map(size, paths)

    def _heeding(self, call: Callable[[], T]) -> T:
        """Call so that Ctrl-C interrupts: obstore blocks it, and only the main thread gets it."""
        if threading.current_thread() is threading.main_thread():
            return self._pool.call(call)
        return call()

    def _each(self, items: Iterable[T]) -> Iterator[T]:
        """The items of an iterator of obstore, interruptibly."""
        rest = iter(items)
        while (item := self._heeding(lambda: next(rest, None))) is not None:
            yield item

    def get(self, path: str, most: int) -> bytes:
        def get() -> bytes:
            got = self._store.get(path)
            if got.meta["size"] > most:
                raise TooLarge(f"it has {got.meta['size']} bytes")
            return bytes(got.bytes())

        return self._heeding(get)

    def range(self, path: str, offset: int, length: int) -> bytes:
        size = self._heeding(lambda: self._store.head(path))["size"]
        length = min(length, size - offset)
        if length <= 0:
            return b""
        got = self._heeding(lambda: self._store.get_range(path, start=offset, length=length))
        return bytes(got)

    def stream(self, path: str) -> Iterator[bytes]:
        # obstore resumes after a broken connection, while the object is unchanged
        got = self._heeding(lambda: self._store.get(path))
        for piece in self._each(got.stream(min_chunk_size=CHUNK)):
            yield bytes(piece)

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> bool:
        fresh = self._fresh(blobs)
        list(self._pool.map(lambda path: self._upload(path, blobs[path]), fresh))
        return self._heeding(lambda: self._create(last, content))

    def put_equal(self, sizes: Mapping[str, int], last: str, content: bytes) -> None:
        self._demand(sizes)
        self._heeding(lambda: self._create(last, content))
        try:
            self._demand(sizes)  # gc may have been removing them
        except FileNotFoundError:
            self.delete([last])
            raise

    def _demand(self, sizes: Mapping[str, int]) -> None:
        """FileNotFoundError if a blob is missing, or has another size."""
        if not sizes:
            return
        for (path, size), found in zip(sizes.items(), self._sizes(sizes), strict=True):
            if found != size:
                raise FileNotFoundError(path)

    def write(self, path: str, content: bytes) -> None:
        self._heeding(lambda: self._upload(path, content))

    def _upload(self, path: str, data: bytes | Path) -> None:
        size = size_of(data)
        # for the client, an upload is silence, since the server does not respond meanwhile
        store = self._store if size <= SMALL else self._connect(SILENCE + size / SLOWEST)
        if isinstance(data, bytes) or not size:
            store.put(path, data if isinstance(data, bytes) else b"", use_multipart=False)
            return
        if not self._plain:
            store.put(path, data)  # in parts
            return
        # WebDAV has no uploads in parts, and obstore would read the whole file into memory
        with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            store.put(path, content, use_multipart=False)

    def _fresh(self, blobs: Mapping[str, bytes | Path]) -> list[str]:
        """The blobs to upload: missing ones, and those so old that gc may remove them."""

        def needed(path: str) -> bool:
            try:
                there = self._store.head(path)
            except FileNotFoundError:
                return True
            old = there["last_modified"].timestamp() < time.time() - UPLOAD / 2
            return old or there["size"] != size_of(blobs[path])

        wanted = self._pool.map(needed, blobs)
        return [path for path, need in zip(blobs, wanted, strict=True) if need]

    def _create(self, path: str, content: bytes) -> bool:
        """Write an object unless it exists; plain servers need a request for that first.

        Returns whether it was written; False also if a try that seemed to fail has written it.
        """
        if not self._own:
            from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError

            try:
                self._store.put(path, content, mode="create")
            except AlreadyExistsError:
                return False
            except (NotImplementedError, NotSupportedError, GenericError):
                pass  # such a store cannot create without replacing
            else:
                return True
        if self.exist([path]):
            return False
        self._store.put(path, content)
        return True

    def delete(self, paths: Iterable[str]) -> None:
        def delete(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._store.delete(path)

        list(self._pool.map(delete, paths))

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        reserved = self.reserved()

        def delete(entry: Entry) -> bool:
            try:
                if entry.path in reserved:
                    return False
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
            for page in self._each(self._store.list(prefix)):
                yield from map(_entry, page)
            return
        # These list one directory, mostly not those below it, by their own full paths.
        listing = self._heeding(lambda: self._store.list_with_delimiter(prefix))
        for entry in (_entry(meta, self._base) for meta in listing["objects"]):
            if entry.path.startswith(prefix + "/") and "/../" not in entry.path:
                yield entry
        for folder in dict.fromkeys(listing["common_prefixes"]):
            inside = _relative(folder, self._base)
            # the listing has the directory itself, too, and no folder of a store has folders
            if inside.startswith(prefix + "/") and inside.count("/") == 1:
                yield from self.list(inside)

    def place(self, path: str) -> Path | None:  # noqa: ARG002
        return None

    def use(self, paths: Collection[str]) -> None:
        self._uses.note([path.rpartition("/")[2] for path in paths])

    def uses(self) -> Mapping[str, float]:
        """The records of use of all clients; records much older than the newest are removed."""
        found: dict[str, float] = {}
        entries = list(self._listed("uses"))
        oldest = max((entry.time for entry in entries), default=0.0) - USES_KEPT
        for entry in entries:
            if entry.time < oldest:
                self._discard(entry.path)
            elif (content := self._read(entry.path)) is not None:
                for key in keys_in(content):
                    path = f"manifests/{key.decode()}"
                    found[path] = max(entry.time, found.get(path, 0.0))
        return found

    def flush(self, timeout: float) -> None:
        self._uses.flush(timeout)

    @contextlib.contextmanager
    def reserve(self, paths: Collection[str]) -> Iterator[None]:
        """The keys are in an object, which is valid for two days if its maker is killed."""
        path = f"reserved/{os.urandom(16).hex()}"
        keys = (each.rpartition("/")[2] for each in paths)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(*self.errors):  # fails if the store is read-only
                self._heeding(lambda: self._upload(path, "\n".join(keys).encode()))
                held.callback(self._discard, path)
            yield

    def _discard(self, path: str) -> None:
        with contextlib.suppress(*self.errors):
            self.delete([path])

    def reserved(self) -> set[str]:
        found: set[str] = set()
        now = self.now()
        for entry in self._listed("reserved"):
            if entry.time < now - RESERVED:
                self._discard(entry.path)
            elif (content := self._read(entry.path)) is not None:
                found.update(f"manifests/{key.decode()}" for key in keys_in(content))
        return found

    def _listed(self, prefix: str) -> Iterator[Entry]:
        """The objects in a folder that need not exist."""
        with contextlib.suppress(FileNotFoundError):
            yield from self.list(prefix)

    def _read(self, path: str) -> bytes | None:
        """An object with keys; None if it is gone or too large."""
        with contextlib.suppress(FileNotFoundError, TooLarge):
            return self.get(path, USE_LIST)
        return None

    def tidy(self) -> None:
        """Nothing: incomplete uploads are not visible."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._outer.map(function, items)

    def now(self) -> float:
        """The time by the server's clock, which sets the times of entries."""

        def ask() -> float:
            self._store.put("clock", b"")
            return self._store.head("clock")["last_modified"].timestamp()

        return self._heeding(ask)


def _entry(meta: ObjectMeta, base: str = "") -> Entry:
    path = _relative(meta["path"], base)
    return Entry(path, meta["size"], meta["last_modified"].timestamp())


def _relative(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")
