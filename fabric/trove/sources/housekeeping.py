"""Removes leftovers from all repositories of the trove, and verifies them."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric.trove.sources.git import ABANDONED, Repository
from fabric.trove.sources.git_process import DamagedRepositoryError

#: The suffix of a damaged repository that was put aside.
_ASIDE = ".damaged"


def gc(root: Path, *, dry_run: bool) -> int:
    """Remove leftovers of killed fetches below ``root``; return how many bytes that frees."""
    freed = 0
    for repository in (*root.glob("*.git"), *_repositories(root / "git")):
        for pattern in ("pack/tmp_*", "pack/.tmp-*", "??/tmp_obj_*"):
            for file in repository.glob(f"objects/{pattern}"):
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    if time.time() - status.st_mtime > ABANDONED:
                        freed += status.st_size
                        if not dry_run:
                            file.unlink()
    return freed


def check(root: Path, read: Callable[[], None]) -> Iterator[tuple[str, str, str]]:
    """Read all repositories below ``root``; for each damaged one, yield its name, the reason and
    the action taken.

    A mirror is removed.  Another one may have commits that exist nowhere else, so it is put aside.
    """
    for path in sorted(_repositories(root / "git")):
        read()
        name = str(path.relative_to(root / "git"))
        try:
            Repository(path).examine()
        except DamagedRepositoryError as error:
            if name.startswith("mirrors/"):
                Repository(path).remove()
                yield name, error.why, "it is removed, and fetched again when it is needed"
            else:
                aside = path.with_suffix(_ASIDE)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                then = f"it is put aside as {aside}; import its lorry, or push it, again"
                yield name, error.why, then


def _repositories(folder: Path) -> Iterator[Path]:
    """All repositories below a folder."""
    for path in folder.glob("*/"):
        if path.suffix == ".git":
            yield path
        elif path.suffix != _ASIDE:
            yield from _repositories(path)
