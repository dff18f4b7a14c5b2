"""Finds the embedded fabrics that run now: each has a link in the cache to its private folder.

Only processes of the same user get into such a folder, and only folders of this user are followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

#: File in the folder of a fabric that is locked as long as the fabric lives.
ALIVE = "alive"
#: The folder of the links, in the directory of the state.
_LINKS = "running"
#: Links that are followed, at most.
_MANY = 100


def link_to(state_dir: Path, folder: Path) -> Path:
    """The path of the link to the folder of a fabric."""
    return state_dir / _LINKS / folder.name


def announce(link: Path, folder: Path) -> None:
    """Make the link, if the cache can be written: no build fails without it."""
    with contextlib.suppress(OSError):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)


def withdraw(link: Path) -> None:
    with contextlib.suppress(OSError):
        link.unlink()


def folders(state_dir: Path) -> Iterator[Path]:
    """The folders of fabrics of this user that live; removes links to others that ended."""
    with contextlib.suppress(OSError):
        links = sorted((state_dir / _LINKS).iterdir())[:_MANY]
        for link in links:
            folder = Path(os.readlink(link))  # noqa: PTH115  it may be relative
            match _lives(folder):
                case True:
                    yield folder
                case False:
                    withdraw(link)


def _lives(folder: Path) -> bool | None:
    """Whether a fabric of this user lives in the folder; None if it is another user's."""
    try:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            return None
        lock = os.open(folder / ALIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
