"""Starts sandboxes that cannot change the device nodes of this machine.

bubblewrap mounts the machine's own null, zero and others into a sandbox.  To the kernel, a build of
a worker that is root is that root, who owns them: it could take them from all other programs by a
`chmod`.  Therefore they are read-only where the sandboxes of root begin: in the mount namespace of
a thread, which costs a sandbox nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from fabric.building import personality

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")

#: Those that bubblewrap mounts.
NODES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))

# From <sched.h> and <sys/mount.h>.
_NEW_MOUNTS = 0x20000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _SLAVE = 1, 32, 4096, 16384, 1 << 19
#: Flags of a mount that have to be given again: as of statvfs, and as of mount.
_KEPT = {os.ST_NOSUID: 2, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_RELATIME: 1 << 21}


class _Starter(NamedTuple):
    """A thread for whose children the nodes are read-only."""

    pool: ThreadPoolExecutor
    failed: Future[list[str]]  # what `_protect` returns


_starting = threading.Lock()
_starters: dict[int, _Starter] = {}  # by process: a thread does not outlive a fork


def starting(start: Callable[[], T]) -> T:
    """What ``start`` returns, in a thread for whose children the nodes are read-only.

    They see the same architecture as children of the caller (`fabric.building.personality`), and
    are as nice.  The thread is as old as the process: a child may ask to end with the thread that
    made it.
    """
    starter = _starter()
    if starter is None:
        return start()
    wanted = personality.taken()
    nice = os.getpriority(os.PRIO_PROCESS, 0)

    def start_as_here() -> T:
        personality.become(wanted)
        if os.getpriority(os.PRIO_PROCESS, 0) != nice:
            with suppress(PermissionError):  # a container's root may be forbidden to be less nice
                os.setpriority(os.PRIO_PROCESS, 0, nice)
        return start()

    return starter.pool.submit(start_as_here).result()


def unprotected() -> str:
    """Why sandboxes of this process could change some of the nodes, and the remedy; else ""."""
    starter = _starter()
    if starter is None or not (failed := starter.failed.result()):
        return ""
    return (
        f"builds could change device nodes of this machine: {'; '.join(failed)}."
        "  Run this program as another user than root"
    )


def _starter() -> _Starter | None:
    """The thread of this process; None if its user does not own the nodes."""
    if os.geteuid() != Path(NODES[0]).stat().st_uid:
        return None
    from concurrent.futures import ThreadPoolExecutor

    with _starting:
        if os.getpid() not in _starters:
            _starters.clear()
            pool = ThreadPoolExecutor(1, "sandboxes")
            _starters[os.getpid()] = _Starter(pool, pool.submit(_protect))
        return _starters[os.getpid()]


def _protect() -> list[str]:
    """Make the nodes read-only for this thread, and return those that cannot be made so, and why.

    A container that forbids its root to mount has a /dev of its own, which stays as it is.
    """
    failed = []
    with suppress(OSError):
        _call("unshare", _NEW_MOUNTS)
        _call("mount", None, b"/", None, _RECURSIVE | _SLAVE, None)
        for node in NODES:
            try:
                _make_read_only(node)
            except OSError as error:
                failed.append(f"{node}: {error.strerror}")
    return failed


def _make_read_only(node: str) -> None:
    path = node.encode()
    _call("mount", path, path, None, _BIND, None)
    found = os.statvfs(node).f_flag
    kept = sum(flag for known, flag in _KEPT.items() if found & known)
    _call("mount", None, path, None, _REMOUNT | _BIND | _READ_ONLY | kept, None)


def _call(name: str, *arguments: int | bytes | None) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
