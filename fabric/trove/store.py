"""The artifact store: what was built, named by what it is.

::

    manifests/<cache key>     a `fabric.jobs.Manifest` as JSON: "this step is built"
    blobs/<2>/<sha256>        archives and logs

Blobs are written before the manifest that names them, so whoever sees a manifest can have its
blobs; the first manifest of a key wins.  Everything read is checked against its digest.  Any
number of processes may use a store at once.  What is durable when `Store.put` returns is said
at `fabric.trove.directory.Directory`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fabric.errors import StoreError
from fabric.jobs import Blob, Manifest
from fabric.trove.backends import ABANDONED, Backend, Entry
from fabric.trove.directory import Directory
from fabric.trove.files import sha256_of

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Manifest).decode
#: Longest that gc waits with a blob that no manifest names: an upload may be under way.
GRACE = ABANDONED


class DamagedError(StoreError):
    """The store holds something else than it should, or lost it.  `Store.forget` mends that."""

    def __init__(self, message: str, blob: Blob | None = None) -> None:
        super().__init__(message)
        self.blob = blob


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a store is."""

    manifests: int
    blobs: int
    bytes: int


class Store:
    """The store at ``url``: a directory, or a URL (file, http, https, s3, gs, az, memory).

    ``scratch`` is a local directory for copies of remote blobs.  Connecting does not touch the
    store.  Every method raises StoreError, which says what failed where, and what to do.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self.url = url
        self._scratch = scratch
        self._verified: set[tuple[str, int, int]] = set()
        try:
            self._backend = _connect(url)
        except Exception as error:  # noqa: BLE001 - whatever obstore raises about a bad URL
            raise StoreError(
                f"{url}: cannot be used as an artifact store: {_brief(error)}; give a directory"
                " or a URL of file:, http:, https:, s3:, gs: or az: as the setting `artifacts`"
            ) from None

    # -- manifests ---------------------------------------------------------------------------

    def has(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that are built.  Only the manifest is looked for."""
        with self._explained("cannot be asked what it has"):
            found = self._backend.exist(_manifest(key) for key in keys)
        return {path.rpartition("/")[2] for path in found}

    def manifest(self, key: str) -> Manifest | None:
        """What is known of a built step; None if it is not there."""
        path = _manifest(key)
        with self._explained(f"manifest {key} cannot be read"):
            try:
                content = self._backend.get(path)
            except FileNotFoundError:
                return None
            self._backend.used(path)
        try:
            manifest = _decode(content)
        except msgspec.DecodeError as error:
            raise self._damaged_manifest(key, str(error)) from None
        if manifest.key != key:
            raise self._damaged_manifest(key, f"it is that of {manifest.key}")
        return manifest

    def put(self, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
        """Store a built step.  ``files`` gives each blob of the manifest by its sha256.

        StoreError if one is not what its name says, or the store is full or out of reach.
        """
        blobs: dict[str, bytes | Path] = {}
        for blob in manifest.blobs():
            if blob.sha256 not in files:
                raise StoreError(f"{manifest.name}: blob {blob.sha256} was not given to the store")
            data = files[blob.sha256]
            self._check_given(manifest, blob, data)
            blobs[_blob(blob)] = data
        with self._explained(f"{manifest.name} cannot be stored"):
            self._backend.put(blobs, _manifest(manifest.key), _encode(manifest))

    def keys(self) -> Iterator[str]:
        """Cache keys of all that is stored."""
        with self._explained("cannot be listed"):
            for entry in self._backend.list("manifests"):
                yield entry.path.rpartition("/")[2]

    def remove(self, keys: Iterable[str]) -> None:
        """Forget built steps.  Their blobs stay until `gc`."""
        with self._explained("cannot be cleaned"):
            self._backend.delete(_manifest(key) for key in keys)

    # -- blobs -------------------------------------------------------------------------------

    def read(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
        """A blob, whole and verified, or a range of it, which cannot be."""
        if offset or length is not None:
            length = blob.size - offset if length is None else length
            with self._reading(blob):
                return self._backend.range(_blob(blob), offset, length)
        with self._reading(blob):
            content = self._backend.get(_blob(blob))
        self._verify(blob, len(content), hashlib.sha256(content).hexdigest())
        return content

    def fetch(self, blob: Blob, to: Path) -> None:
        """Copy a blob to the file ``to``, which is replaced only by the whole, verified blob."""
        import tempfile

        with self._reading(blob, f"cannot be fetched to {to}"):
            to.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=to.parent, prefix=".fetch-")
        try:
            digest = hashlib.sha256()
            size = 0
            with self._reading(blob, f"cannot be fetched to {to}"), os.fdopen(handle, "wb") as file:
                for piece in self._backend.stream(_blob(blob)):
                    digest.update(piece)
                    size += file.write(piece)
            self._verify(blob, size, digest.hexdigest())
            Path(name).chmod(0o644)
            Path(name).replace(to)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def path(self, blob: Blob) -> Path:
        """A local file that holds the blob, verified; not to be changed.

        A directory store gives its own file, others a copy in the scratch directory.
        """
        file = self._backend.place(_blob(blob))
        if file is None:
            file = self._scratch / "blobs" / blob.sha256
            if not file.exists():
                self.fetch(blob, file)
                return file
        with self._reading(blob):
            status = file.stat()
            seen = (blob.sha256, status.st_ino, status.st_mtime_ns)
            if seen not in self._verified:
                self._verify(blob, status.st_size, sha256_of(file))
                self._verified.add(seen)
        return file

    def forget(self, blob: Blob) -> list[str]:
        """After a `DamagedError`: remove the blob if it is damaged, and what was built with it.

        Return the cache keys that are no longer in the store, so are to be built again.
        """
        try:
            self.read(blob) if blob.size < 2**20 else self.path(blob)
        except DamagedError:
            pass
        else:
            return []  # somebody has mended it
        affected = [key for key in self.keys() if self._needs(key, blob)]
        self.remove(affected)
        with self._explained("cannot be cleaned"):
            self._backend.delete([_blob(blob)])
        return affected

    # -- housekeeping ------------------------------------------------------------------------

    def usage(self) -> Usage:
        """How full the store is."""
        with self._explained("cannot be listed"):
            manifests = list(self._backend.list("manifests"))
            blobs = list(self._backend.list("blobs"))
        total = sum(entry.size for entry in manifests) + sum(entry.size for entry in blobs)
        return Usage(len(manifests), len(blobs), total)

    def gc(
        self,
        keep: AbstractSet[str],
        *,
        older_than: float = 0.0,
        max_bytes: int | None = None,
        dry_run: bool = False,
        now: Callable[[], float] = time.time,
    ) -> Usage:
        """Remove what is not in ``keep`` (cache keys), least recently used first.

        Nothing used within ``older_than`` seconds goes; with ``max_bytes`` no more goes than is
        needed to come down to that size.  Blobs go when no manifest that stays names them and
        no upload can be about to: those younger than a day stay.  Return what was removed,
        or with ``dry_run`` what would be.
        """
        with self._explained("cannot be cleaned"):
            if not dry_run:
                self._backend.tidy()
            # blobs first: a blob put after this is not in the list, so cannot be removed
            blobs = {entry.path: entry for entry in self._backend.list("blobs")}
            entries = sorted(self._backend.list("manifests"), key=lambda one: one.time)
        needs = {entry.path: self._blobs_of(entry.path.rpartition("/")[2]) for entry in entries}
        users: dict[str, int] = {}
        for paths in needs.values():
            for path in paths:
                users[path] = users.get(path, 0) + 1
        total = sum(one.size for one in entries) + sum(one.size for one in blobs.values())
        total -= sum(one.size for path, one in blobs.items() if path not in users)
        condemned: list[Entry] = []
        for entry in entries:
            kept = entry.path.rpartition("/")[2] in keep or entry.time > now() - older_than
            if kept or (max_bytes is not None and total <= max_bytes):
                continue
            condemned.append(entry)
            total -= entry.size
            for path in needs[entry.path]:
                users[path] -= 1
                if not users[path] and path in blobs:
                    total -= blobs[path].size
        with self._explained("cannot be cleaned"):
            gone = condemned if dry_run else self._backend.delete_unused(condemned)
            spared = {path for one in set(condemned) - set(gone) for path in needs[one.path]}
            unnamed = [
                entry
                for path, entry in blobs.items()
                if not users.get(path) and path not in spared and entry.time <= now() - GRACE
            ]
            gone_blobs = unnamed if dry_run else self._backend.delete_unused(unnamed)
        size = sum(entry.size for entry in (*gone, *gone_blobs))
        return Usage(len(gone), len(gone_blobs), size)

    # -- inside ------------------------------------------------------------------------------

    def _blobs_of(self, key: str) -> frozenset[str]:
        """Paths of the blobs that a manifest names; none if it is gone or damaged."""
        try:
            manifest = self.manifest(key)
        except DamagedError:
            return frozenset()
        return frozenset(map(_blob, manifest.blobs())) if manifest else frozenset()

    def _needs(self, key: str, blob: Blob) -> bool:
        return _blob(blob) in self._blobs_of(key)

    def _check_given(self, manifest: Manifest, blob: Blob, data: bytes | Path) -> None:
        if isinstance(data, bytes):
            found, size = hashlib.sha256(data).hexdigest(), len(data)
        else:
            with self._explained(f"{manifest.name} cannot be stored: {data} cannot be read"):
                found, size = sha256_of(data), data.stat().st_size
        if (found, size) != (blob.sha256, blob.size):
            raise StoreError(
                f"{manifest.name} cannot be stored: its blob {blob.sha256} ({blob.size} bytes)"
                f" turned out to be {found} ({size} bytes): the file changed after it was made"
            )

    def _verify(self, blob: Blob, size: int, sha256: str) -> None:
        if size != blob.size:
            raise self._damaged(blob, f"it has {size} bytes instead of {blob.size}")
        if sha256 != blob.sha256:
            raise self._damaged(blob, f"its digest is {sha256}")

    def _damaged(self, blob: Blob, why: str) -> DamagedError:
        return DamagedError(
            f"{self.url}: blob {blob.sha256} is damaged: {why}; forget it, and what needs it"
            " is built again",
            blob,
        )

    def _damaged_manifest(self, key: str, why: str) -> DamagedError:
        return DamagedError(
            f"{self.url}: manifest {key} is damaged: {why}; remove it, and the step is built again"
        )

    @contextlib.contextmanager
    def _reading(self, blob: Blob, what: str = "cannot be read") -> Iterator[None]:
        try:
            with self._explained(f"blob {blob.sha256} {what}"):
                yield
        except _Absent:
            raise self._damaged(blob, "it is not there") from None

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the backend's troubles into a StoreError that begins with where and what."""
        try:
            yield
        except FileNotFoundError as error:
            raise _Absent(f"{self.url}: {what}: {_brief(error)}") from error
        except self._backend.trouble as error:
            raise StoreError(f"{self.url}: {what}: {_brief(error)}{_advice(error)}") from error


class _Absent(StoreError):
    """Something is not there."""


def _connect(url: str) -> Backend:
    """The backend for a plain path or URL.  Raises whatever obstore does if there is none."""
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return Directory(Path(unquote(urlsplit(url).path)))
    if "://" not in url:
        return Directory(Path(url).expanduser().absolute())
    from fabric.trove.remote import Remote  # and with it obstore: the cached path goes without

    return Remote(url)


def _manifest(key: str) -> str:
    if not key.isalnum():
        raise StoreError(f"{key!r} is no cache key")
    return f"manifests/{key}"


def _blob(blob: Blob) -> str:
    return f"blobs/{blob.sha256[:2]}/{blob.sha256}"


def _brief(error: Exception) -> str:
    """An exception's own words, without obstore's debug output around them."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    first, _, details = str(error).partition("\n")
    first = re.sub(r" in [\d.]+[mµn]?s\b|, after \d+ retries.*retry_timeout: \S+", "", first)
    cause = re.search(r'message: "([^"]+)"', details)
    return (f"{first}: {cause[1]}" if cause else first) or type(error).__name__


def _advice(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "; the disk is full: free some room (fabric-initiator gc), then try again"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return f"; the store must be writable for {_user()}"
    if isinstance(error, OSError):
        return ""
    if "PROPFIND" in str(error):
        return "; only a WebDAV server that answers PROPFIND can be listed and cleaned from here"
    return "; check that the server is up and the setting `artifacts` right, then try again"


def _user() -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    return f"user id {os.geteuid()}"
