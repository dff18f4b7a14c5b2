"""Mounts the overlays that a build writes to, before bubblewrap starts.

Unmounting an overlay makes the kernel flush the whole file system of its upper side, which can
take seconds.  Only the mount option ``volatile`` prevents that, and bubblewrap cannot set it.  So
the overlay is mounted in a user and mount namespace of its own, which ends with the sandbox.  That
takes about three milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fabric.building.session import Session

#: Mounts the overlay, then runs the rest of the command line.  Directories have short names in
#: the scratch: options are limited to 4096 bytes (256 with the newer mount call, which is
#: therefore not used), and a comma or colon in a path would end it.
_MOUNT = (
    'cd "$0" && LIBMOUNT_FORCE_MOUNT2=always mount -t overlay -o "lowerdir=$1,upperdir=up'
    ',workdir=work,userxattr,volatile" overlay build && shift && exec "$@"'
)
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT)


def writable(lower: Sequence[Path], session: Session, scratch: Path) -> tuple[str, ...]:
    """The start of a command line in which ``build`` in ``scratch`` is an overlay.

    Its lower sides are the trees ``lower``, lowest first; changes go to ``up``, which exists.
    """
    names = [f"low{number}" for number in range(len(lower))]
    for name, tree in zip(names, lower, strict=True):
        (scratch / name).unlink(missing_ok=True)
        (scratch / name).symlink_to(tree)
    (scratch / "build").mkdir(exist_ok=True)
    # A volatile overlay marks its work directory, and is not mounted again then, since after a
    # crash the upper side may be half written.  This one was written since boot.
    session.discard(scratch / "work")
    (scratch / "work").mkdir()
    return (*_UNSHARE, str(scratch), ":".join(reversed(names)))
