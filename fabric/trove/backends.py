"""Where the artifact store's bytes live: a directory, or anything obstore can reach.

Both backends speak of objects by relative path (``manifests/<key>``).  An object is seen whole
or not at all.  What is not there is a `FileNotFoundError`; every other trouble of a backend is
one of `TROUBLE`, which `fabric.trove.store` turns into a `StoreError`.

A directory is not reached through obstore, because obstore's ``LocalStore`` renames a finished
file into place without syncing anything: after a power cut a manifest could name empty blobs.
It also spares the fully cached path the import of obstore.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fabric.trove.files import CHUNK, fsync, locked, make_directory, sha256_of

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from obstore import ObjectMeta
    from obstore.store import ObjectStore

#: How many requests a remote store gets at once.
PARALLEL = 16
#: Leftovers of killed writers are removed once they are this old, in seconds.
ABANDONED = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its path, size in bytes, and when it was last written or used (Unix time)."""

    path: str
    size: int
    time: float


class Backend(Protocol):
    """What the store needs of a place to keep objects."""

    #: exceptions that mean trouble with this backend, other than FileNotFoundError
    trouble: tuple[type[Exception], ...]

    def exist(self, paths: Iterable[str]) -> set[str]:
        """Those of ``paths`` that are there."""

    def get(self, path: str) -> bytes: ...

    def range(self, path: str, offset: int, length: int) -> bytes:
        """Bytes ``offset`` to ``offset + length``, fewer at the end of the object."""

    def stream(self, path: str) -> Iterator[bytes]: ...

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> None:
        """Write all blobs, then ``last``, which is left alone if it is there already.

        A blob that is there with the right size is not written again, but counts as used now.
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Remove them; what is not there is no error."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path starts with ``prefix`` + "/"."""

    def place(self, path: str) -> Path | None:
        """The file that holds the object, where objects are files of this machine."""

    def used(self, path: str) -> None:
        """Note that the object is of use now, where the backend can note such things."""


class Directory:
    """Objects as files below ``root``.

    Durability: a file is written under a temporary name in ``root/tmp`` and renamed into place.
    Then the blobs of one `put`, their directories (those just made, too) and the manifest, which
    has no name yet, are fsynced, all at the same time, and only after that the manifest gets its
    name and its directory is fsynced.  So when `put` returns, a power cut loses nothing of it,
    and a cut at any time leaves no manifest without its blobs.  What a cut may leave is a torn
    blob that no manifest names; the next `put` of it finds that out and writes it again.
    """

    trouble = (OSError,)

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _syncers(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(8, thread_name_prefix="sync")

    def exist(self, paths: Iterable[str]) -> set[str]:
        base = f"{self.root}/"
        return {path for path in paths if os.access(base + path, os.F_OK)}

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def range(self, path: str, offset: int, length: int) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def stream(self, path: str) -> Iterator[bytes]:
        with (self.root / path).open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> None:
        temporary: dict[str, Path] = {}
        try:
            # Shared with other writers; gc takes the lock alone, so that it never removes a blob
            # between our finding it here and our manifest's naming it.
            with locked(self._lock_file, shared=True):
                self._put(blobs, last, content, temporary)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

    def _put(
        self,
        blobs: Mapping[str, bytes | Path],
        last: str,
        content: bytes,
        temporary: dict[str, Path],
    ) -> None:
        unsynced: set[Path] = set()
        for path, data in blobs.items():
            file = self.root / path
            if _is_whole(file, data):
                os.utime(file)
            else:
                temporary[path] = self._temporary(data)
                make_directory(file.parent)
                temporary.pop(path).replace(file)
                unsynced.add(file.parent)
            unsynced.add(file)  # one that was there may be another's, not synced yet
        manifests = (self.root / last).parent
        make_directory(manifests)
        if not self.exist([last]):
            temporary[last] = self._temporary(content)
            unsynced.add(temporary[last])
        self._sync(*unsynced)
        if last in temporary:
            # link, unlike rename, leaves alone a manifest that came first
            with contextlib.suppress(FileExistsError):
                os.link(temporary[last], self.root / last)
        self._sync(manifests)

    def _sync(self, *paths: Path) -> None:
        """fsync files and directories, several at once: mostly it is waiting for the disk."""
        first, *others = paths
        waiting = [self._syncers.submit(fsync, path) for path in others]
        fsync(first)
        for one in waiting:
            one.result()

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self.root / path).unlink(missing_ok=True)

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove the entries that nobody has touched since they were listed."""
        removed = []
        for entry in entries:
            with locked(self._lock_file), contextlib.suppress(FileNotFoundError):
                file = self.root / entry.path
                if file.stat().st_mtime <= entry.time:
                    file.unlink()
                    removed.append(entry)
        return removed

    def list(self, prefix: str) -> Iterator[Entry]:
        base = str(self.root)
        for folder, folders, files in os.walk(f"{base}/{prefix}"):
            folders.sort()
            for name in sorted(files):
                with contextlib.suppress(FileNotFoundError):  # removed while we list
                    status = Path(folder, name).stat()
                    relative = f"{folder[len(base) + 1 :]}/{name}"
                    yield Entry(relative, status.st_size, status.st_mtime)

    def place(self, path: str) -> Path | None:
        return self.root / path

    def used(self, path: str) -> None:
        file = self.root / path
        with contextlib.suppress(OSError):  # only a hint for gc; the store may be read-only
            if file.stat().st_mtime < time.time() - 60:
                os.utime(file)

    def tidy(self) -> None:
        """Remove what killed writers left behind."""
        for entry in self.list("tmp"):
            if entry.time < time.time() - ABANDONED:
                (self.root / entry.path).unlink(missing_ok=True)

    @property
    def _lock_file(self) -> Path:
        return self.root / "lock"

    def _temporary(self, data: bytes | Path) -> Path:
        """A new file in root/tmp with that content."""
        import shutil
        import tempfile

        folder = self.root / "tmp"
        make_directory(folder)
        handle, name = tempfile.mkstemp(dir=folder)
        file = Path(name)
        try:
            with os.fdopen(handle, "wb") as opened:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, opened, CHUNK)
                else:
                    opened.write(data)
                os.fchmod(opened.fileno(), 0o444)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return file


class Remote:
    """Objects behind a URL that obstore understands: http(s) (WebDAV), s3, gs, az, memory.

    How durable a finished upload is, the server decides.
    """

    def __init__(self, url: str) -> None:
        from datetime import timedelta
        from urllib.parse import unquote, urlsplit

        import obstore.exceptions
        from obstore.store import from_url

        # obstore raises FileNotFoundError, PermissionError and the like of Python's own, too
        self.trouble = (obstore.exceptions.BaseError, OSError, ValueError)
        plain = url.startswith(("http:", "https:"))
        #: what a WebDAV server's listings have before our paths; None for stores that list well
        self._base = unquote(urlsplit(url).path).strip("/") if plain else None
        settings: dict[str, Any] = {}
        if not url.startswith("memory:"):
            client = settings["client_options"] = {
                "connect_timeout": timedelta(seconds=10),
                "read_timeout": timedelta(seconds=60),  # of silence
                "timeout": timedelta(days=1),  # of a whole transfer
            }
            if url.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP") == "true":
                client["allow_http"] = True
            settings["retry_config"] = {"max_retries": 4, "retry_timeout": timedelta(minutes=2)}
        self._store: ObjectStore = from_url(url, **settings)

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

    def get(self, path: str) -> bytes:
        return bytes(self._store.get(path).bytes())

    def range(self, path: str, offset: int, length: int) -> bytes:
        size = self._store.head(path)["size"]
        length = min(length, size - offset)
        if length <= 0:
            return b""
        return bytes(self._store.get_range(path, start=offset, length=length))

    def stream(self, path: str) -> Iterator[bytes]:
        for piece in self._store.get(path).stream(min_chunk_size=CHUNK):
            yield bytes(piece)

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> None:
        fresh = self._fresh(blobs)
        list(self._pool.map(lambda path: self._store.put(path, blobs[path]), fresh))
        self._create(last, content)

    def _fresh(self, blobs: Mapping[str, bytes | Path]) -> list[str]:
        """The blobs to upload: those not there, and those so old that gc may be at them."""

        def needed(path: str) -> bool:
            try:
                there = self._store.head(path)
            except FileNotFoundError:
                return True
            old = there["last_modified"].timestamp() < time.time() - ABANDONED / 2
            return old or there["size"] != _size(blobs[path])

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
        removed = list(entries)
        self.delete(entry.path for entry in removed)
        return removed

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


def connect(url: str) -> Directory | Remote:
    """The backend for a plain path or URL.  Its ``trouble`` or ValueError if there is none."""
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return Directory(Path(unquote(urlsplit(url).path)))
    if "://" not in url:
        return Directory(Path(url).expanduser().absolute())
    return Remote(url)


def _entry(meta: ObjectMeta, base: str = "") -> Entry:
    path = _relative(meta["path"], base)
    return Entry(path, meta["size"], meta["last_modified"].timestamp())


def _relative(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")


def _size(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _is_whole(file: Path, data: bytes | Path) -> bool:
    """Whether the blob is there already, and is what its name says."""
    try:
        return file.stat().st_size == _size(data) and sha256_of(file) == file.name
    except FileNotFoundError:
        return False
