"""Reads the blobs of an artifact store, and compares each with its digest.

A backend on this machine gives its own files; those of others are copied to a local folder, where
programs share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fabric.errors import DamagedError, StoreError
from fabric.host.cancel import no_check
from fabric.host.files import is_private
from fabric.host.progress import Moved, unmoved
from fabric.host.shared_files import sha256_of
from fabric.jobs import Blob
from fabric.trove.artifacts.backend import Backend, TooLarge
from fabric.trove.artifacts.copies import Copies
from fabric.trove.artifacts.errors import advice, brief


class Blobs:
    """The blobs of the store at ``url``.  Every method raises StoreError, with advice."""

    def __init__(
        self, url: str, backend: Backend, copies: Copies, named: str, *, private: bool
    ) -> None:
        """``copies`` are those of remote blobs.

        ``named`` as for `Store`.  ``private``: files that others may change are copied, too.
        """
        self.url = url
        self.copies = copies
        self._backend = backend
        self._named = named
        self._private = private
        self._verified: set[tuple[str, int, int]] = set()

    def read(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
        """A blob, whole and verified, or a range of it, which cannot be."""
        if offset or length is not None:
            length = blob.size - offset if length is None else length
            if blob.content is not None:
                return blob.content[offset : offset + length]
            with self._reading(blob):
                return self._backend.range(self._backend.blob_path(blob), offset, length)
        content = blob.content
        if content is None:
            with self._reading(blob):
                try:
                    content = self._backend.get(self._backend.blob_path(blob), blob.size)
                except TooLarge as error:
                    raise self._damaged(blob, str(error)) from None
        self._verify(blob, len(content), hashlib.sha256(content).hexdigest())
        return content

    def stream(self, blob: Blob) -> Iterator[bytes]:
        """A blob in pieces.  DamagedError, maybe after the last piece, if it is damaged."""
        if blob.content is not None:
            yield self.read(blob)
            return
        digest, size = hashlib.sha256(), 0
        with self._reading(blob):
            for piece in self._backend.stream(self._backend.blob_path(blob)):
                digest.update(piece)
                size += len(piece)
                if size > blob.size:  # it may be endless
                    raise self._wrong_size(blob, size)
                yield piece
        self._verify(blob, size, digest.hexdigest())

    def fetch(self, blob: Blob, to: Path, check: Callable[[], None] = no_check) -> None:
        """Copy a blob to the file ``to``, which is replaced only by the whole, verified blob.

        ``check`` is called repeatedly meanwhile, and may raise.
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
        """A blob opened for reading, verified; ``key`` and ``check`` as for `path`."""
        if blob.content is None:
            try:
                return self.path(blob, key, check).open("rb")
            except FileNotFoundError:  # the copy was just removed
                return self.path(blob, key, check).open("rb")
        with _blamed(key):
            return io.BytesIO(self.read(blob))

    def path(self, blob: Blob, key: str = "", check: Callable[[], None] = no_check) -> Path:
        """A read-only local file with the blob, verified.

        A directory store returns its own file, unless signatures are checked and other users may
        change it; others return a copy in the scratch directory.  ``key`` is the step of the blob,
        which a DamagedError names.
        """
        with _blamed(key):
            file = self._own(blob) or self._copy(blob, check)
            with self._reading(blob):
                status = file.stat()
                if status.st_size != blob.size:  # it may be endless
                    raise self._wrong_size(blob, status.st_size)
                seen = (blob.sha256, status.st_ino, status.st_mtime_ns)
                if seen not in self._verified:
                    self._verify(blob, status.st_size, sha256_of(file))
                    self._verified.add(seen)
        return file

    def _own(self, blob: Blob) -> Path | None:
        """The store's file of a blob; None if there is none that stays as it was verified."""
        file = self.place(blob)
        # another user of the store could replace a file after its verification
        return file if file and (not self._private or is_private(file)) else None

    def _copy(self, blob: Blob, check: Callable[[], None]) -> Path:
        with self._reading(blob, f"cannot be fetched to {self.copies.folder / blob.sha256}"):
            file, new = self.copies.get(blob.sha256, lambda to: self.fetch(blob, to, check))
            if new:
                status = file.stat()
                self._verified.add((blob.sha256, status.st_ino, status.st_mtime_ns))
        return file

    def bring(
        self,
        wanted: Iterable[tuple[str, Blob]],
        check: Callable[[], None] = no_check,
        moved: Moved = unmoved,
    ) -> None:
        """Fetch blobs (key, blob) that will be opened, in parallel; ``moved`` follows it."""
        absent = {
            blob: key
            for key, blob in wanted
            if blob.content is None
            and self._own(blob) is None
            and not (self.copies.folder / blob.sha256).exists()
        }
        if absent:
            done, total = 0, sum(blob.size for blob in absent)
            moved(done, total)
            come = self._backend.map(lambda one: self.path(one, absent[one], check), absent)
            for blob, _ in zip(absent, come, strict=True):
                check()
                done += blob.size
                moved(done, total)

    def place(self, blob: Blob) -> Path | None:
        """The store's own file of a blob, if it is on this machine; not verified."""
        return self._backend.place(self._backend.blob_path(blob)) if blob.content is None else None

    def demand(self, blob: Blob) -> None:
        """DamagedError if a blob is missing."""
        with self._explained(f"blob {blob.sha256} cannot be looked for"):
            there = self._backend.exist([self._backend.blob_path(blob)])
        if blob.content is None and blob.size and not there:
            raise self._damaged(blob, "it is not there")

    def there(self, blobs: Iterable[Blob]) -> set[str]:
        """The digests of those blobs that exist; they are not read."""
        paths = {self._backend.blob_path(blob): blob.sha256 for blob in blobs}
        with self._explained("cannot be asked what it has"):
            return {paths[path] for path in self._backend.exist(paths)}

    def verify(self, blob: Blob) -> None:
        """Read a blob.  DamagedError if it does not match its digest."""
        for _ in self.stream(blob):
            pass

    def _is_right(self, blob: Blob) -> bool:
        with contextlib.suppress(DamagedError):
            self.verify(blob)
            return True
        return False

    def _verify(self, blob: Blob, size: int, sha256: str) -> None:
        if size != blob.size:
            raise self._wrong_size(blob, size)
        if sha256 != blob.sha256:
            raise self._damaged(blob, f"its digest is {sha256}")

    def _wrong_size(self, blob: Blob, size: int) -> DamagedError:
        found = f"{size} bytes" if size <= blob.size else "more bytes"
        return self._damaged(blob, f"it has {found} instead of {blob.size}")

    def _damaged(self, blob: Blob, why: str) -> DamagedError:
        return DamagedError(
            f"{self.url}: blob {blob.sha256} is damaged: {why}; what needs it is to be built again"
        )

    @contextlib.contextmanager
    def _reading(self, blob: Blob, what: str = "cannot be read") -> Iterator[None]:
        try:
            with self._explained(f"blob {blob.sha256} {what}"):
                yield
        except AbsentError:
            raise self._damaged(blob, "it is not there") from None

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the backend's errors into a StoreError that begins with the URL and ``what``."""
        try:
            yield
        except FileNotFoundError as error:
            raise AbsentError(f"{self.url}: {what}: {brief(error)}") from error
        except self._backend.errors as error:
            raise StoreError(
                f"{self.url}: {what}: {brief(error)}{advice(error, self.url, self._named)}"
            ) from error


class AbsentError(StoreError):
    """An object is missing."""


@contextlib.contextmanager
def _blamed(key: str) -> Iterator[None]:
    """Add the step of the damaged blob, if known, to a DamagedError."""
    try:
        yield
    except DamagedError as error:
        error.keys = (key,) if key else ()
        raise
