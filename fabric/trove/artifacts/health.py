"""Detects damaged artifacts of built steps by their inodes.

Reading an artifact of a gigabyte takes a second, which is too long for a fully cached build.  So
the inode of a file is recorded when the file was verified, and the file is trusted while the inode
is unchanged.  A damaged artifact is removed, so that it is built again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from fabric.errors import DamagedError
from fabric.host.files import recall, remember
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.manifests import steps_of
from fabric.trove.artifacts.store import Store


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The inode of a blob's file; for a blob on a server, only its digest."""

    sha256: str
    inode: int = 0
    size: int = 0
    written: int = 0  # nanoseconds
    changed: int = 0
    names: int = 0

    def same(self, other: Mark) -> bool:
        """Whether the file is unchanged, except for links added or removed."""
        return (self.sha256, self.inode, self.size, self.written) == (
            *(other.sha256, other.inode, other.size, other.written),
        ) and (self.changed == other.changed or self.names != other.names)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Mark, ...]).decode


class Health:
    """Verifies the steps of ``store``; verified inodes are recorded on this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records = store.copies.folder.with_name("sound")

    def mend(self, keys: Iterable[str], *, read: bool = False) -> dict[str, str]:
        """Remove damaged steps of these.  Return the reasons by key.

        With ``read``, all blobs are read, despite the records.  A stratum is damaged if one of its
        chunks is.  StoreError if the store cannot be read or changed.
        """
        found: dict[str, str] = {}
        for key in keys:
            try:
                manifest = self._store.manifest(key)
                if manifest is not None:
                    self._check(manifest, read)
            except DamagedError as error:
                self._store.forget(key)
                found[key] = str(error)
        return found

    def believe(self, keys: Iterable[str]) -> None:
        """Record these steps as verified: they have just been stored, which reads them."""
        for key in keys:
            if (manifest := self._store.manifest(key)) is not None:
                self._record(key, self._marks(manifest))

    def examine(self, read: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Read the whole store, and remove damaged steps: yield (key, reason) of each.

        ``read`` is called with "steps" or "blobs" for each that was read.
        """
        right: set[bytes] = set()  # digests of verified blobs
        for key in self._store.keys():  # noqa: SIM118 - no mapping
            read("steps")
            try:
                manifest = self._store.manifest(key)
                for blob in manifest.blobs() if manifest else ():
                    if bytes.fromhex(blob.sha256) not in right:
                        self._store.verify(blob)
                        right.add(bytes.fromhex(blob.sha256))
                        read("blobs")
            except DamagedError as error:
                self._store.forget(key)
                yield key, str(error)

    def _check(self, manifest: Manifest, read: bool) -> None:
        """DamagedError if a step is not as stored."""
        if manifest.kind == "stratum":
            inside = steps_of(manifest)
            for why in self.mend(inside, read=read).values():
                raise DamagedError(why, (manifest.key,))
            if lacking := set(inside) - self._store.has(inside):
                raise DamagedError(
                    f"{self._store.url}: {len(lacking)} chunks of {manifest.name} are gone",
                    (manifest.key,),
                )
        marks = self._marks(manifest)
        known = self._known(manifest.key)
        if not read and len(known) == len(marks) and all(map(Mark.same, known, marks)):
            return
        for blob in manifest.blobs():
            if blob.content is not None or self._store.place(blob) is not None:
                self._store.verify(blob)
        self._record(manifest.key, marks)

    def _marks(self, manifest: Manifest) -> tuple[Mark, ...]:
        return tuple(self._mark(blob) for blob in manifest.blobs() if blob.content is None)

    def _mark(self, blob: Blob) -> Mark:
        file = self._store.place(blob)
        if file is None:
            self._store.demand(blob)
            return Mark(blob.sha256)
        try:
            look = file.stat()
        except FileNotFoundError:
            self._store.demand(blob)
            raise
        names, changed = look.st_nlink, look.st_ctime_ns
        return Mark(blob.sha256, look.st_ino, look.st_size, look.st_mtime_ns, changed, names)

    def _known(self, key: str) -> tuple[Mark, ...]:
        try:
            return _decode(recall(self._records / key))
        except ValueError:
            return ()

    def _record(self, key: str, marks: tuple[Mark, ...]) -> None:
        """Record inodes; if that fails, the blobs are read again the next time."""
        with contextlib.suppress(OSError):
            remember(self._records / key, _encode(marks))
