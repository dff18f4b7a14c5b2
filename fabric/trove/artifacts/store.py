"""The artifact store: keeps built artifacts by cache key and digest.

::

    manifests/<cache key>     a `fabric.jobs.Manifest` as JSON: "this step is built"
    blobs/<2>/<sha256>        archives and logs; small ones are in their manifest
    hints/<digest>            a cache key (`fabric.trove.artifacts.contents`)
    countersigned/<key>       what the broker says of it (`fabric.trove.artifacts.countersigned`)

Blobs are written before the manifest that names them, so a manifest's blobs exist; the first
manifest of a key wins, but one that no trusted key signed counts as absent (`fabric.trust`).
Everything read is checked against its digest (`fabric.trove.artifacts.blobs`).  Any number of
processes may use a store at once.  For durability see `fabric.trove.artifacts.directory.Directory`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fabric import bounds
from fabric.errors import DamagedError, StoreError, without_secrets
from fabric.host.shared_files import sha256_of
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.backend import Backend, Haste, R, T, TooLarge
from fabric.trove.artifacts.blobs import AbsentError, Blobs
from fabric.trove.artifacts.connect import connect
from fabric.trove.artifacts.copies import Copies
from fabric.trove.artifacts.gc import Gone, collect
from fabric.trove.artifacts.manifests import (
    apart,
    countersignature_path,
    decode,
    decode_hint,
    encode,
    encode_hint,
    hint_path,
    key_of,
    manifest_path,
)
from fabric.trust.envelopes import plain
from fabric.trust.seal import MANIFEST, Seal, UnsignedError, is_envelope

if TYPE_CHECKING:
    from fabric.trust.signing import PublicKey

#: Manifests that count as absent of which `Store` tells.
TOLD = 100


def unsaid(_: str) -> None:
    """Tells nobody."""


class Usage(msgspec.Struct, frozen=True):
    """The numbers of objects in a store, and their bytes."""

    manifests: int
    blobs: int
    bytes: int


class Sealed(NamedTuple):
    """A manifest, and the bytes that it is stored as, with all their signatures."""

    manifest: Manifest
    data: bytes


class Store(Blobs):
    """The store at ``url``: a directory, or a URL (file, http, https, s3, gs, az, memory,
    reapi, reapis).

    ``scratch`` is a local directory for copies of remote blobs.  For a URL, ``ca`` is a file with
    a certificate (PEM) to trust besides the system's, ``password`` one with USER:PASSWORD.  The
    constructor does not access the store.  Every method raises StoreError, with advice.
    """

    def __init__(
        self,
        url: str,
        scratch: Path,
        *,
        ca: Path | None = None,
        password: Path | None = None,
        backend: Backend | None = None,
        seal: Seal | None = None,
        said: Callable[[str], object] = unsaid,
        named: str = "artifacts",
        haste: Haste | None = None,
    ) -> None:
        """``backend`` replaces the one of ``url``; ``seal`` signs and checks manifests.

        ``said`` is told, once, of each manifest that counts as absent because of its signature.
        ``named`` is the setting or option that names the store, for advice; "": errors have none.
        ``haste`` as for `connect`.
        """
        backend = backend or connect(url, scratch, ca, password, named, haste)
        super().__init__(url, backend, Copies(scratch), named, private=seal is not None)
        self.seal = self._seal = seal
        self._said = said
        self._told: set[str] = set()  # what `said` was told
        self._used: dict[str, float] = {}  # key -> when its use is recorded again

    def sweep(self) -> None:
        """Remove leftovers of killed processes in the store and among the copies."""
        self.copies.sweep()
        with contextlib.suppress(*self._backend.errors):  # the store may be read-only
            self._backend.tidy()

    def prepare(self) -> None:
        """SigningProblem if what is put here should be signed, and cannot be."""
        if self._seal is not None:
            self._seal.prepare()

    @property
    def shown(self) -> str:
        """Its URL for outputs, without a password."""
        return without_secrets(self.url)

    @property
    def is_signed(self) -> bool:
        """Whether only what a trusted key signed counts here."""
        return self._seal is not None

    # -- manifests ---------------------------------------------------------------------------

    def has(self, keys: Iterable[str]) -> set[str]:
        """The ``keys`` of built steps: those that have a manifest that counts."""
        with self._explained("cannot be asked what it has"):
            found = {key_of(path) for path in self._backend.exist(map(manifest_path, keys))}
        if self._seal is None:
            return found
        counts = self._backend.map(self._counts, found)
        return {key for key, counted in zip(found, counts, strict=True) if counted}

    def _counts(self, key: str) -> bool:
        try:
            return self.manifest(key) is not None
        except DamagedError:
            return True  # who reads it will find out, and have it inspected

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of a built step; None if there is none that counts."""
        try:
            found = self.sealed(key)
        except UnsignedError as error:
            text = f"{self.shown}: manifest {key} counts as absent: {error}"
            if text not in self._told and len(self._told) < TOLD:
                self._told.add(text)
                more = "; no more are told" if len(self._told) == TOLD else ""
                self._said(text + more)
            return None
        return found.manifest if found else None

    def sealed(self, key: str) -> Sealed | None:
        """The manifest of a built step with its signatures; None if there is none.

        UnsignedError if it does not count.
        """
        return self._sealed(key, self._seal)

    def signers(self, manifest: Manifest) -> list[PublicKey]:
        """The trusted keys that signed a manifest; none if the store has another one by now."""
        if self._seal is None:
            return []
        key = manifest.key
        try:
            with self._explained(f"manifest {key} cannot be read"):
                data = self._backend.get(manifest_path(key), bounds.MANIFEST)
            if decode(data, key) != manifest:
                return []
            return self._seal.opened(MANIFEST, data)[1]
        except (AbsentError, TooLarge, ValueError):
            return []

    def _any_manifest(self, key: str) -> Manifest | None:
        """As `whole_manifest`, whoever signed it: for housekeeping, which trusts nothing in it."""
        with contextlib.suppress(DamagedError):
            found = self._sealed(key, None)
            return found.manifest if found else None
        return None

    def _sealed(self, key: str, seal: Seal | None) -> Sealed | None:
        path = manifest_path(key)
        with self._explained(f"manifest {key} cannot be read"):
            try:
                content = self._backend.get(path, bounds.MANIFEST)
            except FileNotFoundError:
                return None
            except TooLarge as error:
                raise self._damaged_manifest(key, str(error)) from None
        try:
            return Sealed(decode(content, key, seal), content)
        except UnsignedError:
            raise
        except ValueError as error:
            raise self._damaged_manifest(key, str(error)) from None

    def whole_manifest(self, key: str) -> Manifest | None:
        """The manifest of a built step; None also if it is damaged."""
        with contextlib.suppress(DamagedError):
            return self.manifest(key)
        return None

    def manifests(self, keys: Iterable[str]) -> list[Manifest | None]:
        """The manifests of many steps, in their order."""
        return list(self._backend.map(self.manifest, keys))

    @property
    def is_local(self) -> bool:
        """Whether its objects are files of this machine."""
        return self._backend.place("manifests") is not None

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply a function that uses this store, in parallel if the store is remote."""
        return self._backend.map(function, items)

    def put(
        self, manifest: Manifest, files: Mapping[str, bytes | Path], sealed: bytes = b""
    ) -> bool:
        """Store a built step; return whether it is the first of its key, for that one stays.

        ``files`` has, by sha256, the blobs whose content is not inline.

        A given file may become the store's own, so it must not change afterwards.  ``sealed`` is
        the manifest as another store has it: it is stored with its signatures, and not signed here.
        StoreError if a blob does not match its digest, or the store is full or unreachable.
        """
        blobs: dict[str, bytes | Path] = {}
        for blob in manifest.blobs():
            data = files.get(blob.sha256) if blob.content is None else blob.content
            if data is None:
                raise StoreError(f"{manifest.name}: blob {blob.sha256} was not given to the store")
            self._check_given(manifest, blob, data)
            if blob.content is None:
                blobs[self._backend.blob_path(blob)] = data
        self._make_way(manifest.key)
        with self._explained(f"{manifest.name} cannot be stored"):
            content = _plain(sealed) if sealed else encode(manifest, self._seal)
            return self._backend.put(blobs, manifest_path(manifest.key), content)

    def _make_way(self, key: str) -> None:
        """Remove a manifest that does not count, for the first one of a key wins."""
        if self._seal is None:  # each counts
            return
        try:
            self.sealed(key)
        except UnsignedError:
            self.remove([key])
        except DamagedError:
            pass  # an inspection removes it

    def keys(self) -> Iterator[str]:
        """The cache keys of all built steps."""
        with self._explained("cannot be listed"):
            for entry in self._backend.list("manifests"):
                if key := key_of(entry.path):
                    yield key

    def remove(self, keys: Iterable[str]) -> None:
        """Remove built steps.  Their blobs stay until `gc`."""
        names = list(keys)
        with self._explained("cannot be cleaned"):
            self._backend.delete(map(manifest_path, names))
            self._backend.delete(map(countersignature_path, names))

    def put_equal(self, manifest: Manifest) -> bool:
        """Store a step whose blobs the store has already; False if one of them is missing.

        The blobs count as used now, but are not read: damage is found by their readers.  A power
        cut may lose the manifest, which costs another comparison.
        """
        sizes = {self._backend.blob_path(blob): blob.size for blob in apart(manifest)}
        path = manifest_path(manifest.key)
        self._make_way(manifest.key)
        with self._explained(f"{manifest.name} cannot be stored"):
            try:
                self._backend.put_equal(sizes, path, encode(manifest, self._seal))
            except FileNotFoundError:
                return False
        return True

    # -- countersignatures ------------------------------------------------------------------

    def countersignature(self, key: str) -> bytes | None:
        """The countersignature of a step as it is stored; None if there is none."""
        with self._explained(f"the countersignature of {key} cannot be read"):
            try:
                return self._backend.get(countersignature_path(key), bounds.HINT)
            except (FileNotFoundError, TooLarge):
                return None

    def put_countersignature(self, key: str, content: bytes) -> None:
        """Write or replace the countersignature of a step.  A power cut may lose it."""
        with self._explained(f"{key} cannot be countersigned"):
            self._backend.write(countersignature_path(key), content)

    # -- hints ------------------------------------------------------------------------------

    def hint(self, digest: str) -> str | None:
        """The cache key in a hint; None if it is missing or damaged, or not signed as manifests."""
        with self._explained(f"hint {digest} cannot be read"):
            try:
                content = self._backend.get(hint_path(digest), bounds.HINT)
            except (FileNotFoundError, TooLarge):
                return None
        try:
            return decode_hint(content, digest, self._seal)
        except ValueError:
            return None

    def put_hints(self, hints: Mapping[str, str]) -> None:
        """Write or replace hints: digest -> cache key.  A power cut may lose them."""

        def put(digest: str) -> None:
            hint = encode_hint(digest, hints[digest], self._seal)
            self._backend.write(hint_path(digest), hint)

        with self._explained("hints cannot be written"):
            list(self._backend.map(put, hints))

    def latest(self, kind: str, name: str, arch: str) -> str | None:
        """The cache key of the step of that name that was built last; None if it is not known."""
        return self.hint(name_digest(kind, name, arch))

    # -- use --------------------------------------------------------------------------------

    def use(self, keys: Iterable[str]) -> None:
        """Record that a build or a user uses these steps now, for `gc`.

        Reading a manifest does not count as use.
        """
        now = time.monotonic()
        fresh = [key for key in keys if self._used.get(key, 0.0) <= now]
        if fresh:
            self._used |= dict.fromkeys(fresh, now + self._backend.use_every)
            self._backend.use([manifest_path(key) for key in fresh])

    def flush(self, timeout: float = 2.0) -> None:
        """Upload all records of use; wait at most so many seconds."""
        self._backend.flush(timeout)

    def reserve(self, keys: Iterable[str]) -> contextlib.AbstractContextManager[None]:
        """Meanwhile `gc` of any process spares these steps; they need not exist."""
        return self._backend.reserve([manifest_path(key) for key in keys])

    # -- damage ------------------------------------------------------------------------------

    def inspect(self, key: str) -> bool:
        """Whether a built step and all its blobs exist and are undamaged."""
        manifest = self.whole_manifest(key)
        return manifest is not None and all(map(self._is_right, manifest.blobs()))

    def forget(self, key: str) -> None:
        """Remove a built step and its damaged blobs, so that it can be stored again.

        Other steps with such a blob then lack it, which is detected when they are used.
        """
        manifest = self._any_manifest(key)
        self.remove([key])
        wrong = [blob for blob in apart(manifest) if not self._is_right(blob)]
        with self._explained("cannot be cleaned"):
            self._backend.delete(map(self._backend.blob_path, wrong))

    # -- housekeeping ------------------------------------------------------------------------

    def usage(self) -> Usage:
        """The numbers of objects, and their bytes."""
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
        """Remove steps that are neither in ``keep`` (cache keys) nor reserved, least recently used
        first.

        Steps used within ``older_than`` seconds stay, and so do the steps that those were built
        with.  With ``max_bytes``, removal stops at that size.  Blobs are removed if no remaining
        manifest names them and no upload can be about to.  Return the removed objects, or with
        ``dry_run`` those that would be removed.
        """
        with self._explained("cannot be cleaned"):
            return collect(
                self._backend,
                self._any_manifest,
                set(map(manifest_path, keep)),
                now() if now else self._backend.now(),
                older_than,
                max_bytes,
                dry_run,
            )

    def delete(self, keys: Iterable[str], *, dry_run: bool = False) -> Gone:
        """Remove these steps unless they are reserved, and their blobs as `gc` does.

        Blobs that are so new that a manifest may be about to name them stay until `gc`.
        """
        only = set(map(manifest_path, keys))
        with self._explained("cannot be cleaned"):
            now = self._backend.now()
            return collect(self._backend, self._any_manifest, set(), now, 0.0, None, dry_run, only)

    def reserved(self) -> set[str]:
        """The keys that running builds reserve."""
        with self._explained("cannot be asked what is reserved"):
            return {key_of(path) for path in self._backend.reserved()}

    def used(self) -> dict[str, float]:
        """When each built step was written or last used (Unix time), by cache key."""
        with self._explained("cannot be listed"):
            times = {key_of(one.path): one.time for one in self._backend.list("manifests")}
        noted: Mapping[str, float] = {}
        with contextlib.suppress(*self._backend.errors):  # they are hints
            noted = self._backend.uses()
        for path, time_ in noted.items():
            key = key_of(path)
            if key in times:
                times[key] = max(times[key], time_)
        times.pop("", None)
        return times

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
                f" is {found} ({size} bytes): the file changed after it was made"
            )

    def _damaged_manifest(self, key: str, why: str) -> DamagedError:
        return DamagedError(
            f"{self.url}: manifest {key} is damaged: {why}; the step is to be built again",
            (key,),
        )


def _plain(sealed: bytes) -> bytes:
    """What another store has, without what may be added to it there: a reader reads all of it."""
    return plain(sealed) if is_envelope(sealed) else sealed


def name_digest(kind: str, name: str, arch: str) -> str:
    """The digest of the hint that names the last build of a step."""
    names = (kind, name, arch)
    return hashlib.sha256("\0".join(names).encode()).hexdigest()
