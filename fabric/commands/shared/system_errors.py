"""Turns errors of the operating system that a user can remedy into errors that say how."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fabric.errors import NO_ROOM, FabricError, MachineFault


@contextlib.contextmanager
def explained(cache: Path) -> Iterator[None]:
    """Raise a FabricError that names the remedy for an OSError of the cache or of a full disk."""
    try:
        yield
    except OSError as error:
        unfit = isinstance(error, PermissionError | NotADirectoryError | FileExistsError)
        unfit = unfit or error.errno in (errno.EROFS, *NO_ROOM)
        name = Path(error.filename if isinstance(error.filename, str) else "")
        unmade = isinstance(error, FileNotFoundError) and cache.is_relative_to(name)
        if unmade or (unfit and (name.is_relative_to(cache) or cache.is_relative_to(name))):
            raise FabricError(
                f"{name}: {error.strerror}; everything local is kept in {cache}, which must be a"
                " writable folder: --cache or FABRIC_CACHE names another"
            ) from error
        odd = error.errno in (errno.EISDIR, errno.ELOOP) or name.is_symlink()
        if odd and name.is_relative_to(cache):
            raise FabricError(
                f"{name}: {error.strerror}: another program changed the cache; remove that file, or"
                " name another folder with --cache"
            ) from error
        if error.errno in NO_ROOM:
            raise MachineFault(
                f"{error.filename or 'A disk'}: {error.strerror}; free some room there (TMPDIR"
                " names the folder of temporary files)"
            ) from error
        raise


def require_current_folder() -> None:
    """FabricError if there is no current folder."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise FabricError("the current folder is gone; go to one that exists") from None
