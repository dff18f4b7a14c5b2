"""Reads objects of a repository through one ``git cat-file --batch``."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fabric.trove.sources.git_process import popen

_PIECE = 1 << 20


class CatFile:
    """A git that prints objects; use it with ``with``, since it keeps a process.

    Objects are requested one by one, or all at once by their names in the file ``requests``, a
    line each.  After each `header`, all of the content is read before the next one.
    """

    def __init__(
        self,
        repository: Path,
        *options: str,
        requests: IO[bytes] | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        self._process = popen(
            repository,
            ["cat-file", "--batch", *options],
            stdin=requests or subprocess.PIPE,
            environ=environ,
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout

    def request(self, name: bytes) -> None:
        """Request an object.  OSError if git has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(name + b"\n")
        stdin.flush()

    def header(self) -> tuple[bytes, int]:
        """Type and size of the next object; the size is -1 if there is no such object.

        With ``--follow-symlinks``, other types stand for a link whose target is not an object.
        EOFError if git has ended.
        """
        answer = self._stdout.readline().removesuffix(b"\n")
        if not answer:
            raise EOFError("git has ended")
        if answer.endswith((b" missing", b" ambiguous")):
            return b"missing", -1
        first, second, *rest = answer.split(b" ")
        # "ID blob SIZE", or of a link "dangling SIZE", "loop SIZE", "notdir SIZE", "symlink SIZE"
        return (second, int(rest[0])) if rest else (first, int(second))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The content of an object of that size; fewer bytes if git ends early."""
        while size and (piece := self._stdout.read(min(size, _PIECE))):
            size -= len(piece)
            yield piece
        self._stdout.read(1)  # the newline behind it

    def __enter__(self) -> CatFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End git."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()
