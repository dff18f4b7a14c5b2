"""Keeps an artifact store in a directory, durably.

It does not use obstore, whose ``LocalStore`` renames finished files without syncing: after a power
cut, a manifest could name empty blobs.  Also, a fully cached build then need not import obstore.
"""

# Paths are text where each step of a build needs them: path objects would take as much time as all
# the work on the files.
# ruff: noqa: PTH105, PTH108, PTH120
from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from fabric.host.locks import locked, no_wait
from fabric.host.shared_files import CHUNK, fsync, make_directory, sha256_of
from fabric.trove.artifacts.backend import Entry, TooLarge, size_of
from fabric.trove.artifacts.manifests import blob_path

T = TypeVar("T")
R = TypeVar("R")

# Nothing else is removed: who shares a store could place a link there that leads to other files.
_OBJECT = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"[0-9a-f]{32}")

#: Number of objects that are removed at a time, while writers wait.
_AT_ONCE = 100


class Directory:
    """Objects as files below ``root``.

    Durability: a file gets a temporary name in ``root/tmp`` and is renamed into place.
    Then the blobs of one `put`, their directories and the manifest, which has no name yet, are
    fsynced; only then the manifest gets its name, and its directory is fsynced.  So when `put`
    returns, a power cut loses nothing of it, and a cut at any time leaves no manifest without its
    blobs.  A cut may leave a torn blob that no manifest names; the next `put` of it detects that
    and writes it again.

    All files are written before the first fsync, which in a file system with a journal commits the
    others, too, so parallel fsyncs would not be faster.
    """

    errors: tuple[type[Exception], ...] = (OSError,)
    #: Writers wait while gc has the lock, but the clock of file times is coarse.
    blob_path = staticmethod(blob_path)
    grace = 1.0
    use_every = 60.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock_file = root / "lock"
        self._tmp = root / "tmp"
        self._reserved = root / "reserved"

    def exist(self, paths: Iterable[str]) -> set[str]:
        base = f"{self.root}/"
        return {path for path in paths if _size(base + path)}

    def get(self, path: str, most: int) -> bytes:
        with _opened(self.root / path) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise TooLarge(f"it has more than {most} bytes")
        return content

    def range(self, path: str, offset: int, length: int) -> bytes:
        with _opened(self.root / path) as file:
            file.seek(offset)
            return file.read(length)

    def stream(self, path: str) -> Iterator[bytes]:
        with _opened(self.root / path) as file:
            while piece := file.read(CHUNK):
                yield piece

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> bool:
        files = {f"{self.root}/{path}": data for path, data in blobs.items()}
        manifest = f"{self.root}/{last}"
        folders = {os.path.dirname(file) for file in files}
        named = os.path.dirname(manifest)
        # Writers share the lock, gc takes it exclusively, so it never removes a blob between our
        # finding it and the naming of our manifest.
        with locked(self._lock_file, shared=True):
            for folder in (*folders, named, f"{self._tmp}"):
                make_directory(folder)
            for file, data in files.items():
                if _is_whole(file, data):
                    os.utime(file)  # and sync it below, since its writer may not have yet
                else:
                    os.replace(self._temporary(data), file)
            fresh = None if _size(manifest) else self._temporary(content)
            named_now = False
            try:
                for path in (*files, *folders):
                    fsync(path)
                if fresh is not None:
                    fsync(fresh)
                    named_now = _name(fresh, manifest)
                fsync(named)
            finally:
                if fresh is not None:
                    os.unlink(fresh)
        return named_now

    def put_equal(self, sizes: Mapping[str, int], last: str, content: bytes) -> None:
        manifest = f"{self.root}/{last}"
        with locked(self._lock_file, shared=True):
            for path, size in sizes.items():
                if _size(f"{self.root}/{path}") != size:
                    raise FileNotFoundError(path)
                os.utime(f"{self.root}/{path}")
            if not _size(manifest):
                make_directory(self._tmp)
                fresh = self._temporary(content)
                try:
                    _name(fresh, manifest)
                finally:
                    os.unlink(fresh)

    def write(self, path: str, content: bytes) -> None:
        file = f"{self.root}/{path}"
        with locked(self._lock_file, shared=True):  # `tidy` removes temporary files
            for folder in (os.path.dirname(file), f"{self._tmp}"):
                make_directory(folder)
            os.replace(self._temporary(content), file)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self.root / path).unlink(missing_ok=True)

    def delete_unused(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove the entries that were neither used since they were listed, nor are reserved."""
        removed = []
        listed = list(entries)
        for start in range(0, len(listed), _AT_ONCE):
            with locked(self._lock_file):  # `reserve` shares it
                reserved = self.reserved()
                for entry in listed[start : start + _AT_ONCE]:
                    file = self.root / entry.path
                    with contextlib.suppress(FileNotFoundError):
                        if entry.path not in reserved and file.stat().st_mtime <= entry.time:
                            file.unlink()
                            removed.append(entry)
        return removed

    def list(self, prefix: str) -> Iterator[Entry]:
        base = str(self.root)
        for folder, folders, files in os.walk(f"{base}/{prefix}"):
            folders.sort()
            for name in sorted(filter(_OBJECT.fullmatch, files)):
                with contextlib.suppress(FileNotFoundError):  # removed while we list
                    status = Path(folder, name).stat()
                    relative = f"{folder[len(base) + 1 :]}/{name}"
                    yield Entry(relative, status.st_size, status.st_mtime)

    def place(self, path: str) -> Path | None:
        return self.root / path

    def use(self, paths: Collection[str]) -> None:
        now = time.time()
        for path in paths:
            file = f"{self.root}/{path}"
            with contextlib.suppress(OSError):  # it may be gone, or the store read-only
                if os.stat(file).st_mtime < now - self.use_every:  # noqa: PTH116
                    os.utime(file)

    def uses(self) -> Mapping[str, float]:
        """Nothing: the mtime of a file is that of its last use."""
        return {}

    def flush(self, timeout: float) -> None:
        """Nothing: records of use are in the store at once."""

    @contextlib.contextmanager
    def reserve(self, paths: Collection[str]) -> Iterator[None]:
        """The paths are in a file that is locked while this process lives."""
        file = self._reserved / os.urandom(16).hex()
        with contextlib.ExitStack() as held:
            # fails if the store is read-only
            with contextlib.suppress(OSError), locked(self._lock_file, shared=True):
                held.enter_context(locked(file, remove=True))
                file.write_text("\n".join(paths))
            yield

    def reserved(self) -> set[str]:
        """Reservations of living processes; those of dead ones are removed."""
        found: set[str] = set()
        for file in filter(_is_temporary, self._reserved.glob("*")):
            with contextlib.suppress(OSError):
                try:
                    with locked(file, wait=no_wait, create=False):
                        file.unlink()
                except BlockingIOError:
                    found.update(file.read_text().split("\n"))
        return found

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(function, items)

    def now(self) -> float:
        return time.time()

    def tidy(self) -> None:
        """Remove leftovers of dead writers: all temporary files, if no writer has the lock."""
        self.reserved()
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if os.listdir(self._tmp):  # noqa: PTH208
                with locked(self._lock_file, wait=no_wait):
                    for file in filter(_is_temporary, self._tmp.iterdir()):
                        file.unlink()

    def _temporary(self, data: bytes | Path) -> str:
        """A new file in root/tmp with that content: a link if on the same disk, else a copy."""
        file = f"{self._tmp}/{os.urandom(16).hex()}"
        try:
            if isinstance(data, bytes):
                with open(file, "xb") as new:  # noqa: PTH123
                    new.write(data)
            else:
                try:
                    os.link(data, file)
                    os.utime(file)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(data, file)
            os.chmod(file, 0o444)  # noqa: PTH101
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
            raise
        return file


def _is_temporary(file: Path) -> bool:
    return _TEMPORARY.fullmatch(file.name) is not None


def _opened(path: Path) -> BinaryIO:
    """An object, opened; OSError if it is a pipe or a device, which may never end."""
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115 - it is returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would block it


def _name(fresh: str, manifest: str) -> bool:
    """Give a temporary file the name of a manifest, unless one that is not empty has it; return
    whether it has got it.
    """
    if not _size(manifest):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(manifest)
    # link, unlike rename, does not replace a manifest that came first
    try:
        os.link(fresh, manifest)
    except FileExistsError:
        return False
    return True


def _size(file: str) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return 0


def _is_whole(file: str, data: bytes | Path) -> bool:
    """Whether the blob exists, and matches its name."""
    try:
        size = os.stat(file).st_size  # noqa: PTH116
    except FileNotFoundError:
        return False
    return size == size_of(data) and sha256_of(file) == os.path.basename(file)  # noqa: PTH119
