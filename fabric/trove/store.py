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
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from fabric.errors import DamagedError, StoreError
from fabric.jobs import Blob, Manifest
from fabric.trove.backends import Backend
from fabric.trove.cleaning import collect
from fabric.trove.directory import Directory
from fabric.trove.files import scratch, sha256_of, sweep
from fabric.trove.troubles import advice, brief

_FETCHING = "fetching-"
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Manifest).decode


def _fine() -> None:
    """Go on."""


@dataclass(frozen=True, slots=True)
class Usage:
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
        self, url: str, scratch: Path, *, ca: Path | None = None, password: Path | None = None
    ) -> None:
        self.url = url
        self._scratch = scratch
        self._verified: set[tuple[str, int, int]] = set()
        self._fetching: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        certificate = _secret(ca, "artifacts-ca")
        login = _secret(password, "artifacts-password").decode(errors="replace").strip()
        try:
            self._backend = _connect(url, certificate, login)
        except Exception as error:  # noqa: BLE001 - whatever obstore raises about a bad URL
            raise StoreError(
                f"{url}: cannot be used as an artifact store: {brief(error)}; give a directory"
                " or a URL of file:, http:, https:, s3:, gs: or az: as the setting `artifacts`"
            ) from None

    @property
    def copies(self) -> Path:
        """The folder with copies of remote blobs; what is removed there is fetched again."""
        return self._scratch / "blobs"

    def sweep(self) -> None:
        """Remove what killed processes have left in the scratch directory."""
        sweep(self._scratch, _FETCHING)

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

    def manifests(self, keys: Iterable[str]) -> list[Manifest | None]:
        """What is known of many steps, in their order."""
        return list(self._backend.map(self.manifest, keys))

    def put(self, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
        """Store a built step.  ``files`` gives each blob of the manifest by its sha256.

        A file among them may become the store's own: nobody may write to it any more.
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

    def stream(self, blob: Blob) -> Iterator[bytes]:
        """A blob in pieces.  DamagedError, maybe only after the last, if they are not the blob."""
        digest, size = hashlib.sha256(), 0
        with self._reading(blob):
            for piece in self._backend.stream(_blob(blob)):
                digest.update(piece)
                size += len(piece)
                yield piece
        self._verify(blob, size, digest.hexdigest())

    def fetch(self, blob: Blob, to: Path, check: Callable[[], None] = _fine) -> None:
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

    def path(self, blob: Blob, key: str = "", check: Callable[[], None] = _fine) -> Path:
        """A local file that holds the blob, verified; not to be changed.

        A directory store gives its own file, others a copy in the scratch directory.  ``key``
        is the step that the blob belongs to: a DamagedError names it.
        """
        try:
            file = self._backend.place(_blob(blob)) or self._copy(blob, check)
            with self._reading(blob):
                status = file.stat()
                seen = (blob.sha256, status.st_ino, status.st_mtime_ns)
                if seen not in self._verified:
                    self._verify(blob, status.st_size, sha256_of(file))
                    self._verified.add(seen)
        except DamagedError as error:
            error.keys = (key,) if key else ()
            raise
        return file

    def _copy(self, blob: Blob, check: Callable[[], None]) -> Path:
        """The copy of a remote blob in the scratch directory, fetched once by all threads."""
        file = self.copies / blob.sha256
        lock = self._fetching.setdefault(blob.sha256, threading.Lock())
        with lock:
            try:
                os.utime(file)  # it is of use, so cleaning the scratch spares it
            except FileNotFoundError:
                with (
                    self._reading(blob, f"cannot be fetched to {file}"),
                    scratch(self._scratch, _FETCHING) as folder,
                ):
                    self.fetch(blob, folder / blob.sha256, check)
                    self.copies.mkdir(parents=True, exist_ok=True)
                    (folder / blob.sha256).replace(file)
                status = file.stat()
                self._verified.add((blob.sha256, status.st_ino, status.st_mtime_ns))
        return file

    def bring(self, wanted: Iterable[tuple[str, Blob]], check: Callable[[], None] = _fine) -> None:
        """Fetch blobs (key, blob) that `path` will be asked for, several at a time."""
        absent = {
            blob: key
            for key, blob in wanted
            if self._backend.place(_blob(blob)) is None and not (self.copies / blob.sha256).exists()
        }
        if absent:
            for _ in self._backend.map(lambda one: self.path(one, absent[one], check), absent):
                check()

    # -- damage ------------------------------------------------------------------------------

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
        wrong = [blob for blob in manifest.blobs() if not self._is_right(blob)] if manifest else []
        with self._explained("cannot be cleaned"):
            self._backend.delete(map(_blob, wrong))

    def _is_right(self, blob: Blob) -> bool:
        try:
            for _ in self.stream(blob):
                pass
        except DamagedError:
            return False
        return True

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
    ) -> Usage:
        """Remove what is not in ``keep`` (cache keys), least recently used first.

        Nothing used within ``older_than`` seconds goes; with ``max_bytes`` no more goes than is
        needed to come down to that size.  Blobs go when no manifest that stays names them and
        no upload can be about to: those younger than a day stay.  Return what was removed,
        or with ``dry_run`` what would be.
        """
        with self._explained("cannot be cleaned"):
            gone = collect(
                self._backend,
                self._blobs_of,
                keep,
                now() if now else self._backend.now(),
                older_than,
                max_bytes,
                dry_run,
            )
        return Usage(*gone)

    # -- inside ------------------------------------------------------------------------------

    def _blobs_of(self, key: str) -> frozenset[str]:
        """Paths of the blobs that a manifest names; none if it is gone or damaged."""
        try:
            manifest = self.manifest(key)
        except DamagedError:
            return frozenset()
        return frozenset(map(_blob, manifest.blobs())) if manifest else frozenset()

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
        except self._backend.trouble as error:
            raise StoreError(f"{self.url}: {what}: {brief(error)}{advice(error)}") from error


class _Absent(StoreError):
    """Something is not there."""


def _secret(file: Path | None, setting: str) -> bytes:
    """What is in a file that a setting names; nothing if it names none."""
    try:
        return file.read_bytes() if file else b""
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error.strerror}; see `{setting}`") from None


def _connect(url: str, ca: bytes, login: str) -> Backend:
    """The backend for a plain path or URL.  Raises whatever obstore does if there is none."""
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return Directory(Path(unquote(urlsplit(url).path)))
    if "://" not in url:
        return Directory(Path(url).expanduser().absolute())
    from fabric.trove.remote import Remote  # and with it obstore: the cached path goes without

    return Remote(url, ca, login)


def _manifest(key: str) -> str:
    if not key.isalnum():
        raise StoreError(f"{key!r} is no cache key")
    return f"manifests/{key}"


def _blob(blob: Blob) -> str:
    return f"blobs/{blob.sha256[:2]}/{blob.sha256}"
