"""Mounts the overlays that a build writes to, before bubblewrap starts.

Unmounting an overlay makes the kernel write out the whole file system that its upper side is on,
which can take seconds; only the mount option ``volatile`` prevents that, and bubblewrap cannot
set it.  So the overlay is mounted in a user and mount namespace of its own, which is gone with
the sandbox.  That takes about three milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fabric.building.session import Session

#: A user namespace that has root and a mount namespace; then the overlay, then what follows.
#: The directories are given by short names from the scratch, since the options' length is
#: limited (to 4096 bytes, and to 256 by the newer way to mount, which is why that is not used) and
#: a comma or colon in a path would end it.
_MOUNT = (
    'cd "$0" && LIBMOUNT_FORCE_MOUNT2=always mount -t overlay -o "lowerdir=$1,upperdir=up'
    ',workdir=work,userxattr,volatile" overlay build && shift && exec "$@"'
)
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT)


def writable(lower: Sequence[Path], session: Session, scratch: Path) -> tuple[str, ...]:
    """The start of a command line in which ``build`` in ``scratch`` is an overlay.

    It has the trees ``lower``, lowest first; what is changed goes to ``up``, which is there.
    """
    names = [f"low{number}" for number in range(len(lower))]
    for name, tree in zip(names, lower, strict=True):
        (scratch / name).unlink(missing_ok=True)
        (scratch / name).symlink_to(tree)
    (scratch / "build").mkdir(exist_ok=True)
    # A volatile overlay leaves a mark in its work directory, with which it cannot be mounted
    # again: after a crash the upper side may be half written.  Ours is of this boot.
    session.discard(scratch / "work")
    (scratch / "work").mkdir()
    return (*_UNSHARE, str(scratch), ":".join(reversed(names)))
