"""The artifact store: keeps built artifacts by cache key and digest.

::

    manifests/<cache key>     a `fabric.jobs.Manifest` as JSON: "this step is built"
    blobs/<2>/<sha256>        archives and logs, but for small ones: a manifest holds its own

Blobs are written before the manifest that names them, so whoever sees a manifest can have its
blobs; the first manifest of a key wins.  Everything read is checked against its digest.  Any
number of processes may use a store at once.  What is durable when `Store.put` returns is said
at `fabric.trove.artifacts.directory.Directory`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import BinaryIO

import msgspec

from fabric.bounds import MANIFEST
from fabric.errors import DamagedError, StoreError
from fabric.host.cancel import no_check
from fabric.host.shared_files import sha256_of
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.backend import Backend, TooLarge
from fabric.trove.artifacts.connect import connect
from fabric.trove.artifacts.copies import Copies
from fabric.trove.artifacts.errors import advice, brief
from fabric.trove.artifacts.gc import Gone, collect
from fabric.trove.artifacts.manifests import apart, blob_path, decode, encode, key_of, manifest_path


class Usage(msgspec.Struct, frozen=True):
    """How full a store is."""

    manifests: int
    blobs: int
    bytes: int


class Store:
    """The store at ``url``: a directory, or a URL (file, http, https, s3, gs, az, memory).

    ``scratch`` is a local directory for copies of remote blobs.  Of a URL, ``ca`` is a file with
    the certificate (PEM) to trust besides the system's, ``password`` one with USER:PASSWORD.
    Connecting does not touch the store.  Every method raises StoreError, which says what failed
    where, and what to do.
    """

    def __init__(
        self,
        url: str,
        scratch: Path,
        *,
        ca: Path | None = None,
        password: Path | None = None,
        backend: Backend | None = None,
    ) -> None:
        """``backend``: keeps the objects, in place of the one that ``url`` means."""
        self.url = url
        self.copies = Copies(scratch)
        self._verified: set[tuple[str, int, int]] = set()
        self._used: dict[str, float] = {}  # keys -> when their next use is to be noted
        self._backend = backend or connect(url, scratch, ca, password)

    def sweep(self) -> None:
        """Remove what killed processes have left in the store, and half fetched here."""
        self.copies.sweep()
        with contextlib.suppress(*self._backend.errors):  # of one that is not ours to write
            self._backend.tidy()

    # -- manifests ---------------------------------------------------------------------------

    def has(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that are built.  Only the manifest is looked for."""
        with self._explained("cannot be asked what it has"):
            found = self._backend.exist(manifest_path(key) for key in keys)
        return {key_of(path) for path in found}

    def manifest(self, key: str) -> Manifest | None:
        """What is known of a built step; None if it is not there."""
        path = manifest_path(key)
        with self._explained(f"manifest {key} cannot be read"):
            try:
                content = self._backend.get(path, MANIFEST)
            except FileNotFoundError:
                return None
            except TooLarge as error:
                raise self._damaged_manifest(key, str(error)) from None
        try:
            return decode(content, key)
        except ValueError as error:
            raise self._damaged_manifest(key, str(error)) from None

    def manifests(self, keys: Iterable[str]) -> list[Manifest | None]:
        """What is known of many steps, in their order."""
        return list(self._backend.map(self.manifest, keys))

    def put(self, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
        """Store a built step.  ``files`` gives by its sha256 each blob without content of its own.

        A file among them may become the store's own: nobody may write to it any more.
        StoreError if one is not what its name says, or the store is full or out of reach.
        """
        blobs: dict[str, bytes | Path] = {}
        for blob in manifest.blobs():
            data = files.get(blob.sha256) if blob.content is None else blob.content
            if data is None:
                raise StoreError(f"{manifest.name}: blob {blob.sha256} was not given to the store")
            self._check_given(manifest, blob, data)
            if blob.content is None:
                blobs[blob_path(blob)] = data
        with self._explained(f"{manifest.name} cannot be stored"):
            self._backend.put(blobs, manifest_path(manifest.key), encode(manifest))

    def keys(self) -> Iterator[str]:
        """Cache keys of all that is stored."""
        with self._explained("cannot be listed"):
            for entry in self._backend.list("manifests"):
                if key := key_of(entry.path):
                    yield key

    def remove(self, keys: Iterable[str]) -> None:
        """Forget built steps.  Their blobs stay until `gc`."""
        with self._explained("cannot be cleaned"):
            self._backend.delete(manifest_path(key) for key in keys)

    # -- what is of use ----------------------------------------------------------------------

    def use(self, keys: Iterable[str]) -> None:
        """Note that a build, or a user, needs these steps now: `gc` goes by that.

        To look at a step is no use of it.
        """
        now = time.monotonic()
        fresh = [key for key in keys if self._used.get(key, 0.0) <= now]
        if fresh:
            self._used |= dict.fromkeys(fresh, now + self._backend.use_every)
            self._backend.use([manifest_path(key) for key in fresh])

    def flush(self, timeout: float = 2.0) -> None:
        """Have all notes of use reach the store; wait so many seconds for that at most."""
        self._backend.flush(timeout)

    def reserve(self, keys: Iterable[str]) -> contextlib.AbstractContextManager[None]:
        """Meanwhile no `gc` removes these steps, be they there or still to come."""
        return self._backend.reserve([manifest_path(key) for key in keys])

    # -- blobs -------------------------------------------------------------------------------

    def read(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
        """A blob, whole and verified, or a range of it, which cannot be."""
        if offset or length is not None:
            length = blob.size - offset if length is None else length
            if blob.content is not None:
                return blob.content[offset : offset + length]
            with self._reading(blob):
                return self._backend.range(blob_path(blob), offset, length)
        content = blob.content
        if content is None:
            with self._reading(blob):
                try:
                    content = self._backend.get(blob_path(blob), blob.size)
                except TooLarge as error:
                    raise self._damaged(blob, str(error)) from None
        self._verify(blob, len(content), hashlib.sha256(content).hexdigest())
        return content

    def stream(self, blob: Blob) -> Iterator[bytes]:
        """A blob in pieces.  DamagedError, maybe only after the last, if they are not the blob."""
        if blob.content is not None:
            yield self.read(blob)
            return
        digest, size = hashlib.sha256(), 0
        with self._reading(blob):
            for piece in self._backend.stream(blob_path(blob)):
                digest.update(piece)
                size += len(piece)
                yield piece
        self._verify(blob, size, digest.hexdigest())

    def fetch(self, blob: Blob, to: Path, check: Callable[[], None] = no_check) -> None:
        """Copy a blob to the file ``to``, which is replaced only by the whole, verified blob.

        ``check`` is called again and again meanwhile, and may raise.
        """
        import tempfile

        with self._reading(blob, f"cannot be fetched to {to}"):
            to.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=to.parent, prefix=".fetch-")
        try:
            with self._reading(blob, f"cannot be fetched to {to}"), os.fdopen(handle, "wb") as file:
                for piece in self.stream(blob):
                    check()
                    file.write(piece)
            Path(name).chmod(0o644)
            Path(name).replace(to)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def open(self, blob: Blob, key: str = "", check: Callable[[], None] = no_check) -> BinaryIO:
        """A blob to read from, verified; ``key`` and ``check`` as for `path`."""
        if blob.content is None:
            try:
                return self.path(blob, key, check).open("rb")
            except FileNotFoundError:  # a copy that was removed in this very moment
                return self.path(blob, key, check).open("rb")
        with _blamed(key):
            return io.BytesIO(self.read(blob))

    def path(self, blob: Blob, key: str = "", check: Callable[[], None] = no_check) -> Path:
        """A local file that holds the blob, verified; not to be changed.

        A directory store gives its own file, others a copy in the scratch directory.  ``key``
        is the step that the blob belongs to: a DamagedError names it.
        """
        with _blamed(key):
            place = None if blob.content is not None else self._backend.place(blob_path(blob))
            file = place or self._copy(blob, check)
            with self._reading(blob):
                status = file.stat()
                seen = (blob.sha256, status.st_ino, status.st_mtime_ns)
                if seen not in self._verified:
                    self._verify(blob, status.st_size, sha256_of(file))
                    self._verified.add(seen)
        return file

    def _copy(self, blob: Blob, check: Callable[[], None]) -> Path:
        with self._reading(blob, f"cannot be fetched to {self.copies.folder / blob.sha256}"):
            file, new = self.copies.get(blob.sha256, lambda to: self.fetch(blob, to, check))
            if new:
                status = file.stat()
                self._verified.add((blob.sha256, status.st_ino, status.st_mtime_ns))
        return file

    def bring(
        self, wanted: Iterable[tuple[str, Blob]], check: Callable[[], None] = no_check
    ) -> None:
        """Fetch blobs (key, blob) that `open` will be asked for, several at a time."""
        absent = {
            blob: key
            for key, blob in wanted
            if blob.content is None
            and self._backend.place(blob_path(blob)) is None
            and not (self.copies.folder / blob.sha256).exists()
        }
        if absent:
            for _ in self._backend.map(lambda one: self.path(one, absent[one], check), absent):
                check()

    # -- damage ------------------------------------------------------------------------------

    def place(self, blob: Blob) -> Path | None:
        """The store's own file of a blob, if it is one of this machine; it may be anything."""
        return self._backend.place(blob_path(blob)) if blob.content is None else None

    def demand(self, blob: Blob) -> None:
        """DamagedError if a blob is not there."""
        with self._explained(f"blob {blob.sha256} cannot be looked for"):
            there = self._backend.exist([blob_path(blob)])
        if blob.content is None and blob.size and not there:
            raise self._damaged(blob, "it is not there")

    def verify(self, blob: Blob) -> None:
        """Read a blob.  DamagedError if it is not what its name says."""
        for _ in self.stream(blob):
            pass

    def inspect(self, key: str) -> bool:
        """Whether a built step is there, with all its blobs, and each is what its name says."""
        try:
            manifest = self.manifest(key)
        except DamagedError:
            return False
        return manifest is not None and all(map(self._is_right, manifest.blobs()))

    def forget(self, key: str) -> None:
        """Remove a built step, and of its blobs those that are damaged, so that it can be stored
        again.  Other steps with such a blob have lost it then, which is found when they are used.
        """
        try:
            manifest = self.manifest(key)
        except DamagedError:
            manifest = None
        self.remove([key])
        wrong = [blob for blob in apart(manifest) if not self._is_right(blob)]
        with self._explained("cannot be cleaned"):
            self._backend.delete(map(blob_path, wrong))

    def _is_right(self, blob: Blob) -> bool:
        with contextlib.suppress(DamagedError):
            self.verify(blob)
            return True
        return False

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
        now: Callable[[], float] | None = None,
    ) -> Gone:
        """Remove what is neither in ``keep`` (cache keys) nor reserved, least recently used first.

        Nothing goes that was used within ``older_than`` seconds, nor what such a step was built
        with; with ``max_bytes`` no more goes than is needed to come down to that size.  Blobs go
        when no manifest that stays names them and no upload can be about to.  Return what was
        removed, or with ``dry_run`` what would be.
        """
        with self._explained("cannot be cleaned"):
            return collect(
                self._backend,
                self.manifest,
                set(map(manifest_path, keep)),
                now() if now else self._backend.now(),
                older_than,
                max_bytes,
                dry_run,
            )

    # -- inside ------------------------------------------------------------------------------

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
            f"{self.url}: blob {blob.sha256} is damaged: {why}; what needs it is to be built again"
        )

    def _damaged_manifest(self, key: str, why: str) -> DamagedError:
        return DamagedError(
            f"{self.url}: manifest {key} is damaged: {why}; the step is to be built again",
            (key,),
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
            raise _Absent(f"{self.url}: {what}: {brief(error)}") from error
        except self._backend.errors as error:
            raise StoreError(
                f"{self.url}: {what}: {brief(error)}{advice(error, self.url)}"
            ) from error


class _Absent(StoreError):
    """Something is not there."""


@contextlib.contextmanager
def _blamed(key: str) -> Iterator[None]:
    """A DamagedError names the step that what is damaged belongs to, if it is known."""
    try:
        yield
    except DamagedError as error:
        error.keys = (key,) if key else ()
        raise
