"""Scans directory trees into archive entries, unpacks archives into trees, and deletes trees.

Paths are bytes, relative to the tree's root, without slashes at either end.  Trees are made by
untrusted build commands, so they may contain anything: unreadable directories, names that are not
text, symlinks to anywhere, a thousand levels.
"""

# Paths here are bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH115, PTH211
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from fabric import bounds
from fabric.building import archive
from fabric.building.archive import MTIME, Entry
from fabric.errors import BuildFailed, MachineFault, in_line
from fabric.host.cancel import no_check
from fabric.host.files import walk

_TYPES = {
    stat.S_IFDIR: archive.DIRECTORY,
    stat.S_IFREG: archive.FILE,
    stat.S_IFLNK: archive.SYMLINK,
    stat.S_IFCHR: archive.CHARACTER,
    stat.S_IFBLK: archive.BLOCK,
    stat.S_IFIFO: archive.FIFO,
}


def scan(
    root: Path, check: Callable[[], None] = no_check, *, overlaid: bool = False
) -> dict[bytes, Entry]:
    """Everything under ``root``, by path, in byte order of the paths.

    An unreadable directory is made readable; its entry has the former mode.  Hard links are plain
    files here: `with_links` turns them into links within one archive.  ``check`` is called for
    each directory, and may raise.

    BuildFailed for types of files that no archive can hold, and past a bound.  With ``overlaid``,
    the tree is the upper side of an overlay, whose marks of deleted files, which are devices, are
    skipped.
    """
    top = os.fsencode(root)
    found: dict[bytes, Entry] = {}
    size = 0
    pending = [b""]
    while pending:
        check()
        parent = pending.pop()
        prefix = parent + b"/" if parent else b""
        for item in _entries(top + b"/" + parent):
            _bounded(len(found), size)
            info = item.stat(follow_symlinks=False)
            path = prefix + item.name
            if len(path) > bounds.ARTIFACT_PATH:
                raise BuildFailed(
                    f"/{in_line(path[:60])}... is a path of more than {bounds.ARTIFACT_PATH}"
                    " bytes, and no artifact may hold one"
                )
            type_ = _TYPES.get(stat.S_IFMT(info.st_mode))
            mode = stat.S_IMODE(info.st_mode)
            if type_ == archive.FILE:
                inode = (info.st_dev, info.st_ino) if info.st_nlink > 1 else None
                size += info.st_size
                found[path] = Entry(path, type_, mode, info.st_size, source=item.path, inode=inode)
            elif type_ == archive.SYMLINK:
                found[path] = Entry(path, type_, 0o777, link=os.readlink(item.path))
            elif type_ == archive.DIRECTORY:
                pending.append(path)
                found[path] = Entry(path, type_, mode)
            elif type_ == archive.FIFO:
                found[path] = Entry(path, type_, mode)
            elif not overlaid:
                raise BuildFailed(
                    f"/{in_line(path)} is a {'device' if type_ else 'socket'}, and no artifact"
                    " may hold one: the commands that make it must remove it"
                    + (" (chunks have `devices` for devices)" if type_ else "")
                )
    _bounded(len(found), size)
    return {path: found[path] for path in sorted(found)}


def _bounded(files: int, size: int) -> None:
    """BuildFailed if a tree exceeds the bounds of an artifact."""
    if files > bounds.ARTIFACT_FILES:
        raise BuildFailed(f"More than {bounds.ARTIFACT_FILES:,} files are too many for an artifact")
    if size > bounds.ARTIFACT_BYTES:
        raise BuildFailed(
            f"The files have {size:,} bytes (holes count), and an artifact may have"
            f" {bounds.ARTIFACT_BYTES:,}"
        )


def _entries(directory: bytes) -> Iterator[os.DirEntry[bytes]]:
    """The entries of a directory; a generator, since there may be millions."""
    open_up(directory)
    with os.scandir(directory) as entries:
        yield from entries


def open_up(directory: bytes | str | Path, folder: int | None = None) -> None:
    """Make a directory of ours readable and writable, whatever mode a build gave it.

    With ``folder``, an open directory, the name is relative to that.
    """
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, dir_fd=folder):
        os.chmod(directory, 0o700, dir_fd=folder)


class Opener:
    """Lists directories of ours, whatever their modes, and restores the modes at the end.

    Until then, a directory that its owner could not list stays listable, for its contents.
    """

    def __init__(self) -> None:
        self._modes: list[tuple[bytes, int]] = []

    def listing(self, directory: bytes) -> list[os.DirEntry[bytes]]:
        """The entries of a directory."""
        if not os.access(directory, os.R_OK | os.X_OK):
            self._modes.append((directory, stat.S_IMODE(os.lstat(directory).st_mode)))
            os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            return list(entries)

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        for directory, mode in reversed(self._modes):
            os.chmod(directory, mode)


def emptied(directory: Path, most: int = 16) -> bool:
    """Remove at most ``most`` files from a directory; False, with nothing done, if it has more."""
    entries = list(islice(_entries(os.fsencode(directory)), most + 1))
    if len(entries) > most or any(entry.is_dir(follow_symlinks=False) for entry in entries):
        return False
    for entry in entries:
        os.unlink(entry.path)
    return True


def with_links(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries; files of one inode become hard links to the first of them."""
    first: dict[tuple[int, int], bytes] = {}
    for entry in entries:
        if entry.inode is not None:
            name = first.setdefault(entry.inode, entry.name)
            if name != entry.name:
                yield Entry(entry.name, archive.HARD_LINK, entry.mode, link=name)
                continue
        yield entry


#: Attributes that a build can see, and no archive has.  Overlayfs obeys some of them: with
#: ``user.overlay.opaque``, a directory hides its contents in lower layers.
_ATTRIBUTES = ("user.", "system.posix_acl_")


def normalize(
    root: Path, entries: Mapping[bytes, Entry], check: Callable[[], None] = no_check
) -> None:
    """Make a tree just scanned equal to its unpacked archive: modes, mtimes, no attributes."""
    top = os.fsencode(root) + b"/"
    for path in sorted(entries, reverse=True):
        check()
        entry = entries[path]
        if entry.type in (archive.CHARACTER, archive.BLOCK):
            continue
        opened = entry.type != archive.SYMLINK and _bare(top + path, entry.type)
        os.utime(top + path, (MTIME, MTIME), follow_symlinks=False)
        if opened or entry.type == archive.DIRECTORY or not entry.mode & 0o400:
            os.chmod(top + path, entry.mode)
    _bare(top, archive.DIRECTORY)
    os.utime(top, (MTIME, MTIME))
    os.chmod(top, 0o755)


def _bare(path: bytes, type_: bytes) -> bool:
    """Remove extended attributes and access control lists; true if the mode may have changed."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False
    names = [name for name in names if name.startswith(_ATTRIBUTES)]
    if names:
        os.chmod(path, 0o700 if type_ == archive.DIRECTORY else 0o600)
        for name in names:
            os.removexattr(path, name, follow_symlinks=False)
    return bool(names)


class Clash(BuildFailed):
    """Two artifacts have different types of files at one path."""

    def __init__(self, path: bytes, what: str, owner: str, there: str, other: str) -> None:
        super().__init__(f"{owner} has {what} at /{in_line(path)}, where {other} has {there}")


def follow(path: bytes, links: Mapping[bytes, bytes], *, last: bool = True) -> bytes:
    """``path`` with every symlink followed inside a tree whose symlinks are ``links``.

    Unless ``last``, a symlink at the end of the path stays.  Nothing leads outside: the tree's root
    is its own parent.  BuildFailed in a loop.
    """
    hops = 0
    here = b""
    pending = path.split(b"/")[::-1]
    while pending:
        part = pending.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            here = here.rpartition(b"/")[0]
            continue
        step = here + b"/" + part if here else part
        target = links.get(step) if last or pending else None
        if target is None:
            here = step
            continue
        hops += 1
        if hops > 40:
            raise BuildFailed(f"Too many levels of symlinks at /{in_line(path)}")
        if target.startswith(b"/"):
            here = b""
        pending += target.split(b"/")[::-1]
    return here


#: Mode bits that give a program the rights of its owner or group.
RAISING = stat.S_ISUID | stat.S_ISGID


class Unpacker:
    """Unpacks archives one over another into an empty directory ``root``.

    A later file replaces an earlier one; directories merge, also through a symlink to a directory
    (a chunk may bring ``/lib -> usr/lib`` and the next install into ``/lib``).  Nothing is written
    outside of ``root``: links are followed in a table of the tree's links, never by the kernel.
    Devices are only recorded, since making them requires root.
    """

    def __init__(
        self, root: Path, check: Callable[[], None] = no_check, *, keep_raising: bool = True
    ) -> None:
        self._check = check  # called for each entry and megabyte; may raise
        self._dropped = 0 if keep_raising else RAISING  # of files
        self.raising = False  # whether a file has a bit of `RAISING`
        self.dirs: dict[bytes, int] = {}  # path -> mode
        self.links: dict[bytes, bytes] = {}  # path -> target
        self.files: dict[bytes, str] = {}  # all else, also links -> its artifact
        self.devices: dict[bytes, Entry] = {}
        self.replaced: list[tuple[bytes, str, str]] = []  # path, former artifact, new artifact
        self._dir_owner: dict[bytes, str] = {}
        self._top = os.fsencode(root) + b"/"
        self._resolved: dict[bytes, bytes] = {b"": b""}

    def add(self, file: BinaryIO, owner: str) -> list[bytes]:
        """Unpack one archive, and return its paths.

        Clash if an entry conflicts with the tree, MachineFault if the archive is damaged.
        """
        paths = []
        for entry, contents in archive.read(file):
            self._check()
            paths.append(entry.name)
            self.put(entry, contents.pieces(), owner)
        return paths

    def put(self, entry: Entry, pieces: Iterable[bytes], owner: str) -> None:
        """Add an entry; ``pieces`` are the contents of a file.  Clash as for `add`."""
        parent, _, name = entry.name.rpartition(b"/")
        parent = self._directory(parent, owner)
        path = parent + b"/" + name if parent else name
        if entry.type == archive.DIRECTORY:
            self._add_directory(path, entry, owner)
        else:
            self._make_room(path, entry, owner)
            self._make(path, entry, pieces)

    def finish(self, mode: int = 0o755) -> None:
        """Set the modes and times of directories after all is unpacked; the root gets ``mode``."""
        for path in sorted(self.dirs, reverse=True):
            full = self._top + path
            os.utime(full, (MTIME, MTIME))
            os.chmod(full, self.dirs[path])
        os.utime(self._top, (MTIME, MTIME))
        os.chmod(self._top, mode)

    def _directory(self, path: bytes, owner: str) -> bytes:
        """The resolved path of the directory ``path``, which is made if it is missing."""
        known = self._resolved.get(path)
        if known is None:
            known = self._resolved[path] = follow(path, self.links)
            parts = known.split(b"/") if known else []
            for count in range(1, len(parts) + 1):
                step = b"/".join(parts[:count])
                if step not in self.dirs:
                    self._add_directory(step, Entry(step, archive.DIRECTORY, 0o755), owner)
        return known

    def _add_directory(self, path: bytes, entry: Entry, owner: str) -> None:
        if path in self.links:
            if follow(path, self.links) in self.dirs:
                return
            raise Clash(path, "a directory", owner, "a symlink", self.files[path])
        if path in self.files:
            raise Clash(path, "a directory", owner, "a file", self.files[path])
        if path not in self.dirs:
            os.mkdir(self._top + path, 0o700)
        self.dirs[path] = entry.mode
        self._dir_owner[path] = owner

    def _make_room(self, path: bytes, entry: Entry, owner: str) -> None:
        if path in self.dirs:
            what = "a symlink" if entry.type == archive.SYMLINK else "a file"
            raise Clash(path, what, owner, "a directory", self._dir_owner[path])
        before = self.files.get(path)
        if before is not None:
            self.replaced.append((path, before, owner))
            if self.devices.pop(path, None) is None:
                os.unlink(self._top + path)
            if self.links.pop(path, None) is not None:
                self._resolved = {b"": b""}
        self.files[path] = owner

    def _make(self, path: bytes, entry: Entry, pieces: Iterable[bytes]) -> None:
        full = self._top + path
        if entry.type == archive.FILE:
            fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for piece in pieces:
                    self._check()
                    while piece:
                        piece = piece[os.write(fd, piece) :]
                mode = entry.mode & ~self._dropped
                self.raising = self.raising or bool(mode & RAISING)
                os.fchmod(fd, mode)
                os.utime(fd, (MTIME, MTIME))
            finally:
                os.close(fd)
        elif entry.type == archive.SYMLINK:
            os.symlink(entry.link, full)
            os.utime(full, (MTIME, MTIME), follow_symlinks=False)
            self.links[path] = entry.link
            self._resolved = {b"": b""}
        elif entry.type == archive.HARD_LINK:
            parent, _, name = entry.link.rpartition(b"/")
            parent = follow(parent, self.links)
            os.link(self._top + parent + b"/" + name, full, follow_symlinks=False)
        elif entry.type == archive.FIFO:
            os.mkfifo(full)
            os.chmod(full, entry.mode)
            os.utime(full, (MTIME, MTIME))
        elif entry.type in (archive.CHARACTER, archive.BLOCK):
            self.devices[path] = entry
        else:
            raise MachineFault(f"Damaged archive: an entry of type {entry.type!r}")


def copy(entries: Iterable[Entry], to: Path, check: Callable[[], None] = no_check) -> None:
    """Copy the entries of a `scan`, except for devices, to the empty directory ``to``."""
    unpacker = Unpacker(to, check)
    for entry in entries:
        check()
        unpacker.put(entry, archive.contents(entry), "")
    unpacker.finish()


def remove(path: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """Delete a tree, whatever the modes in it; no error if there is none.

    Once ``stop()`` is true, the rest stays.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    except FileNotFoundError:
        return
    open_up(path)
    for folder, name, is_folder in walk(path, lambda folder, name: open_up(name, folder)):
        if stop():
            return
        if is_folder:
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    os.rmdir(path)
