"""Reads the files of a commit from git objects, without a checkout.

Commits are untrusted: neither ``..``, nor symbolic links, nor the names of a tree's entries lead
out of the commit.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from types import TracebackType

from fabric import bounds
from fabric.errors import DefinitionsError, Problem, SourceError
from fabric.trove.sources.cat_file import CatFile
from fabric.trove.sources.git import Repository
from fabric.trove.sources.git_process import entries


class Committed:
    """The files of ``commit``; close it, since it keeps a git running.

    ``environ`` is added to git's environment, to find objects elsewhere.
    """

    def __init__(
        self, repository: Repository, commit: str, environ: dict[str, str] | None = None
    ) -> None:
        self._commit = commit
        self._path = repository.path
        self._environ = environ
        self._objects = CatFile(self._path, "--follow-symlinks", environ=environ)

    def __enter__(self) -> Committed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End git."""
        self._objects.close()

    def read(self, path: str) -> bytes | None:
        """The content of a file by its path; None if it is missing or leads out of the commit.

        DefinitionsError if it is larger than a file of definitions may be.
        """
        if path.startswith("/") or ".." in path.split("/") or "\n" in path or "\0" in path:
            return None
        name = posixpath.normpath(path)
        # cat-file follows links inside the commit only; others are no "blob"
        kind, data = self._ask(f"{self._commit}:{name}", path)
        return data if kind == b"blob" else None

    def copy(self, folder: str, to: Path) -> None:
        """Write the plain files below a folder to ``to``; links are left out.

        SourceError if they exceed a bound.
        """
        left = bounds.LORRIES_SIZE
        listing = entries(self._path, self._commit, f"{folder}/", environ=self._environ)
        for number, (mode, sha, encoded) in enumerate(listing):
            if number >= bounds.LORRY_FILES:
                raise SourceError(f"{folder}: more than {bounds.LORRY_FILES:,} files are not read")
            name = os.fsdecode(encoded)
            if not mode.startswith(b"100") or {"", ".", ".."} & set(name.split("/")):
                continue
            data = self._ask(sha.decode(), name)[1]
            left -= len(data)
            if left < 0:
                raise SourceError(f"{folder}: more than {bounds.LORRIES_SIZE:,} bytes are not read")
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _ask(self, what: str, path: str) -> tuple[bytes, bytes]:
        """Type and content of an object; the type "missing" if there is none."""
        try:
            self._objects.request(os.fsencode(what))
            kind, size = self._objects.header()
        except (OSError, EOFError):
            raise SourceError(f"{path}: git ended while it was to read that") from None
        if size > bounds.DEFINITIONS_FILE:
            most = f"files of definitions have {bounds.DEFINITIONS_FILE:,} at most"
            raise DefinitionsError([Problem(path, 1, f"has {size:,} bytes: {most}")])
        return kind, b"".join(self._objects.pieces(size)) if size >= 0 else b""
