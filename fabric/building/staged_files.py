"""Finds the chunks that the files in a staging area come from, and the interpreters of programs."""

# Paths here are bytes, which pathlib does not take.
# ruff: noqa: PTH115, PTH118
from __future__ import annotations

import functools
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fabric.building.layers import Layer, Moves, place

#: Symlinks, and interpreters of interpreters, that the kernel follows.
_HOPS, _SCRIPTS = 40, 5
#: Bytes of a file that tell its interpreter.
_HEAD = 4096
_PT_INTERP = 3
#: Paths whose chunks are remembered.
_CACHED = 100_000


class _Found(NamedTuple):
    """An entry of a layer."""

    key: str
    path: bytes  # in the sandbox
    mode: int
    file: bytes  # its path on this machine


class StagedFiles:
    """The files of a staging area, by their paths in the sandbox.

    ``laid`` has the layers, lowest first; ``base`` is where they are in the sandbox.  ``writable``
    has the directories on this machine, uppermost first, of each path that a build may write to:
    nothing below such a path is of a chunk.
    """

    def __init__(
        self,
        laid: Mapping[str, tuple[Layer, Moves]],
        base: bytes,
        writable: Mapping[bytes, Sequence[Path]],
    ) -> None:
        self._layers = [
            (key, os.fsencode(layer.path), dict(moves))
            for key, (layer, moves) in reversed(list(laid.items()))
        ]
        self._base = base
        self._writable = writable
        self._entry = functools.lru_cache(_CACHED)(self._look_up)
        self.chunks = functools.lru_cache(_CACHED)(self._chunks)
        self.executed = functools.lru_cache(_CACHED)(self._executed)

    def _chunks(self, path: bytes) -> Mapping[str, bytes]:
        """The keys of the chunks of a file, and of the symlinks on the way to it, with their paths.

        A directory is of no chunk, since several may bring it.
        """
        return {found.key: found.path for found in self._walk(path)}

    def _executed(self, path: bytes) -> Mapping[str, bytes]:
        """`chunks` of a program, and of what the kernel opens to run it."""
        keys: dict[str, bytes] = {}
        for _ in range(_SCRIPTS):
            found = list(self._walk(path))
            keys |= {one.key: one.path for one in found}
            own = self._own(path)
            files = [found[-1].file] if found and stat.S_ISREG(found[-1].mode) else own
            path = next(filter(None, map(_interpreter, files)), b"")
            if not path.startswith(b"/"):
                break
        return keys

    def _own(self, path: bytes) -> list[bytes]:
        """The files on this machine that may be ``path``, of those that the build can write."""
        for top, directories in self._writable.items():
            if path.startswith(top + b"/"):
                below = path[len(top) + 1 :]
                return [os.path.join(os.fsencode(one), below) for one in directories]
        return []

    def _walk(self, path: bytes) -> Iterator[_Found]:
        """The symlinks on the way, and the file at the end, as far as they are of chunks."""
        base = self._base + b"/"
        if not path.startswith(base):
            return
        hops = 0
        here = b""
        pending = path[len(base) :].split(b"/")[::-1]
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = here.rpartition(b"/")[0]
                continue
            here = here + b"/" + part if here else part
            found = self._entry(here)
            if found is None:
                return
            if stat.S_ISDIR(found.mode):
                continue
            yield found
            if not stat.S_ISLNK(found.mode) or hops == _HOPS:
                return
            hops += 1
            target = os.readlink(found.file)
            here = b"" if target.startswith(b"/") else here.rpartition(b"/")[0]
            pending += target.split(b"/")[::-1]

    def _look_up(self, path: bytes) -> _Found | None:
        """The topmost layer's entry at a path whose parents are directories."""
        if self._base + b"/" + path in self._writable:
            return None
        for key, top, moves in self._layers:
            for at in _origins(path, moves):
                try:
                    mode = os.lstat(top + b"/" + at).st_mode
                except OSError:
                    continue
                return _Found(key, self._base + b"/" + path, mode, top + b"/" + at)
        return None


def _origins(path: bytes, moves: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The paths of a layer that may appear at ``path``."""
    if place(path, moves) == path:
        yield path
    for old, new in moves.items():
        if path.startswith(new + b"/") and place(at := old + path[len(new) :], moves) == path:
            yield at


def _interpreter(file: bytes) -> bytes:
    """The program that the kernel opens to run a file; b"" if there is none."""
    try:
        # this opens no device and no FIFO, wherever a symlink of the build leads
        handle = os.open(file, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return b""
            with open(f"/proc/self/fd/{handle}", "rb") as program:  # noqa: PTH123
                return _named_interpreter(program.read(_HEAD))
        finally:
            os.close(handle)
    except (OSError, struct.error):
        return b""


def _named_interpreter(head: bytes) -> bytes:
    if head.startswith(b"#!"):
        words = head[2:].partition(b"\n")[0].split()
        return words[0] if words else b""
    if not head.startswith(b"\x7fELF"):
        return b""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    (start,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    for at in range(start, min(start + size * count, len(head)), size or 1):
        if struct.unpack_from(order + "I", head, at)[0] == _PT_INTERP:
            fields = order + ("8xQ16xQ" if wide else "4xI8xI")
            offset, length = struct.unpack_from(fields, head, at)
            return head[offset : offset + length].rstrip(b"\0")
    return b""
