"""Provides this machine's own tools for bootstrap and test chunks: a root, and a digest."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric.host.cancel import CancelToken
from fabric.host.files import recall, remember, sealed, unsealed

if TYPE_CHECKING:  # programs that build nothing need the digest
    from fabric.building.layers import Layers

#: Where the host's tools are.  The worker's own PATH differs between machines.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

#: The parts of the host that a bootstrap chunk sees; no home, no /var, no keys, no time zone.
_DIRECTORIES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "perl", "services")

#: Three quarters of the alternatives are pages of the manual, and each file delays the first step.
_MANUALS = shutil.ignore_patterns("*.gz")

#: Tools whose contents identify the host in cache keys of bootstrap and test chunks.
_TOOLS = (
    *("sh", "bash", "env", "cp", "install", "find", "xargs", "sed", "grep", "awk", "diff", "patch"),
    *("tar", "gzip", "bzip2", "xz", "zstd", "make", "m4", "bison", "flex", "perl", "python3"),
    *("gcc", "g++", "cpp", "as", "ld", "ar", "nm", "ranlib", "strip", "objcopy", "readelf"),
    *("pkg-config", "dpkg-deb", "makeinfo", "gettext"),
)
#: Directories of which all files count: headers, and the compiler with its headers and libraries.
_TREES = (
    *("/usr/include", "/usr/local/include", "/usr/lib/gcc", "/usr/libexec/gcc"),
    *("/usr/lib/gcc-cross", "/usr/lib64/gcc", "/usr/lib/linux", "/usr/local/lib/gcc"),
)
#: Directories in which a linker looks for libraries and start files (crt1.o), and their names.
_LIBRARIES = tuple(
    f"{prefix}/{name}"
    for prefix in ("", "/usr", "/usr/local")
    for name in ("lib", "lib32", "lib64", "libx32", "lib/*-linux-*")
)
_LIBRARY = r"\.(so(\..*)?|a|o|la)\Z"
_ALL = ""


def root(layers: Layers, cancel: CancelToken) -> list[str]:
    """Arguments of bwrap that make a root of the host's tools, read-only."""

    def make(into: Path) -> None:
        for setting in settings:
            if setting.is_dir():
                shutil.copytree(setting, into / setting.name, symlinks=True, ignore=_MANUALS)
            else:
                shutil.copy(setting, into / setting.name)
        (into / "passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
        (into / "group").write_text("root:x:0:\n")

    # One directory for all of /etc: a mount costs time in each sandbox, a copy only once.
    settings, names, arguments = _survey()
    etc = layers.made(names, make, cancel)
    return ["--tmpfs", "/", "--ro-bind", str(etc), "/etc", *arguments]


@functools.cache
def _survey() -> tuple[list[Path], list[object], list[str]]:
    """Settings of this machine, names of their state, and bwrap's arguments for the rest.

    Cached for the process: a worker's cache keys, too, describe the host as it was at the start.
    """
    settings = [path for path in (Path("/etc", name) for name in _SETTINGS) if path.exists()]
    names: list[object] = ["host", *((str(path), _look(path)) for path in settings)]
    arguments: list[str] = []
    for path in (Path("/", name) for name in _DIRECTORIES):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return settings, names, arguments


_Look = tuple[int, int, int]


def _look(path: Path | str) -> _Look:
    """Numbers that change when a file does, and when an entry of a directory is made or removed."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0, 0, 0
    return info.st_dev, info.st_ino, info.st_ctime_ns


class _Folder(msgspec.Struct, frozen=True, array_like=True):
    """The covered contents of a directory: a digest of its own files, and names below it."""

    look: _Look
    digest: str
    folders: tuple[str, ...]  # names of directories, whose contents are covered too
    elsewhere: tuple[str, ...]  # names of links to files that the directories may not have


class _Memory(msgspec.Struct):
    """The file that `host_tools` keeps."""

    tops: tuple[tuple[str, str], ...]  # of `_tools`, and of `_folders` with their patterns
    files: dict[str, tuple[_Look, str]] = {}  # digests by path
    folders: dict[str, _Folder] = {}  # by path
    digest: str = ""  # of all

    def holds(self, tops: tuple[tuple[str, str], ...]) -> bool:
        """Whether nothing has changed."""
        return (
            self.tops == tops
            and all(_look(path) == folder.look for path, folder in self.folders.items())
            and all(_look(path) == look for path, (look, _) in self.files.items())
        )


def host_tools(cache: Path) -> str:
    """A digest (64 hex digits) of the host's tools: equal on machines with equal tools.

    It covers the programs of _TOOLS, and all that a compiler reads: headers, the compiler's own
    files, start files, libraries.  It does not cover what other programs read, such as modules of
    Perl and Python.

    The file ``cache`` has the digests of unchanged files and directories, so that a second call
    takes a few milliseconds.  A directory counts as unchanged while its inode is: dpkg and
    `install` replace files by others, which changes it.  A file there that is written in place is
    missed.
    """
    tools, tops = tuple(_tools()), tuple(_folders())
    known = _remembered(cache)
    if known.holds(tools + tops):
        return known.digest
    seen = _Memory(tools + tops)
    lines = [f"{name} {_file(path, known, seen)}\n" for path, name in tools]
    for top, pattern in tops:
        pending = [top]
        while pending:
            path = pending.pop()
            folder = seen.folders[path] = _folder(path, pattern, known.folders.get(path))
            lines.append(f"{path} {folder.digest}\n")
            for name in folder.elsewhere:
                lines.append(f"{path}/{name} {_file(f'{path}/{name}', known, seen)}\n")
            if pattern == _ALL:
                pending += [f"{path}/{name}" for name in folder.folders]
    text = "".join(lines).encode(errors="surrogateescape")
    seen.digest = hashlib.sha256(text).hexdigest()
    with contextlib.suppress(UnicodeEncodeError):  # a name that is no text: next time again
        remember(cache, sealed(msgspec.json.encode(seen)))
    return seen.digest


def _remembered(cache: Path) -> _Memory:
    """The cache that `host_tools` wrote; empty if it is missing, damaged, or of another version."""
    try:
        return msgspec.json.decode(unsealed(recall(cache)) or b"{}", type=_Memory)
    except msgspec.ValidationError:
        return _Memory(())


def _file(path: str, known: _Memory, seen: _Memory) -> str:
    """The digest of a file; "" if it cannot be read, also not by a build."""
    look = _look(path)
    before = known.files.get(path)
    digest = before[1] if before is not None and before[0] == look else _digest(path)
    seen.files[path] = (look, digest)
    return digest


def _digest(path: str) -> str:
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            with open(path, "rb") as file:  # noqa: PTH123
                return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _folder(path: str, pattern: str, before: _Folder | None) -> _Folder:
    """The contents of a directory, as far as their names match ``pattern``."""
    look = _look(path)
    if before is not None and before.look == look:
        return before
    lines, folders, elsewhere = [], [], []
    found: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif not re.search(pattern, entry.name):
            continue
        elif entry.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
                target = os.readlink(entry.path)  # noqa: PTH115
                lines.append(f"{entry.name} -> {target}\n")
                if "/" in target and not _covered(f"{path}/{target}"):
                    elsewhere.append(entry.name)
        else:
            lines.append(f"{entry.name} {_digest(entry.path)}\n")
    text = "".join(lines).encode(errors="surrogateescape")
    return _Folder(look, hashlib.sha256(text).hexdigest(), tuple(folders), tuple(elsewhere))


def _covered(path: str) -> bool:
    """Whether a path is in a directory of which all files count."""
    return os.path.normpath(path).startswith(tuple(f"{top}/" for top in _TREES))


def _tools() -> Iterator[tuple[str, str]]:
    """The tools of this machine, always in the same order: path, name."""
    for name in _TOOLS:
        found = shutil.which(name, path=PATH)
        if found is not None:
            yield found, name


def _folders() -> Iterator[tuple[str, str]]:
    """The covered directories of this machine, and a pattern of the names that count in them.

    A link to a directory is not followed, as /lib to /usr/lib: its target is covered itself.
    """
    for patterns, names in ((_TREES, _ALL), (_LIBRARIES, _LIBRARY)):
        for pattern in patterns:
            for path in sorted(glob.glob(pattern)):  # noqa: PTH207
                if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                    yield path, names
