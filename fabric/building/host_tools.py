"""Provides this machine's own tools for bootstrap and test chunks: a root, and a digest."""

from __future__ import annotations

import functools
import hashlib
import shutil
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
_FILES = (
    *("usr/lib/gcc/*/*/cc1*", "usr/libexec/gcc/*/*/cc1*", "usr/lib/gcc/*/*/libgcc.a"),
    *("usr/lib/libc.so.6", "usr/lib64/libc.so.6", "usr/lib/*/libc.so.6", "usr/lib/*/libc.a"),
)


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


def _look(path: Path) -> str:
    """Text that changes when a file does."""
    info = path.stat()
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def host_tools(cache: Path) -> str:
    """A digest (64 hex digits) of the host's tools: equal on machines with equal tools.

    The file ``cache`` has the digests of unchanged files, so that a second call takes a
    millisecond.
    """
    known = _remembered(cache)
    seen: dict[str, tuple[str, str]] = {}  # path -> (its inode's state, digest)
    lines = []
    for name, path in _tools():
        look = _look(path)
        before = known.get(str(path))
        if before is not None and before[0] == look:
            digest = before[1]
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        seen[str(path)] = (look, digest)
        lines.append(f"{name} {digest}\n")
    if seen != known:
        remember(cache, sealed(msgspec.json.encode(seen)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remembered(cache: Path) -> dict[str, tuple[str, str]]:
    """The cache that `host_tools` wrote; empty if it is missing or damaged."""
    content = unsealed(recall(cache))
    return {} if content is None else msgspec.json.decode(content, type=dict[str, tuple[str, str]])


def _tools() -> Iterator[tuple[str, Path]]:
    """The tools of this machine, always in the same order."""
    for name in _TOOLS:
        found = shutil.which(name, path=PATH)
        if found is not None:
            yield name, Path(found)
    for pattern in _FILES:
        for path in sorted(Path("/").glob(pattern)):
            yield str(path), path
