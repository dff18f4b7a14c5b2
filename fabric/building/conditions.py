"""Defines the conditions of a build on which its result must not depend.

A step is built under `USUAL` conditions.  Built once more to compare the results
(`Job.rebuild_of`), it gets `OTHER` ones, so that a result that depends on a condition differs.
Conditions are in no cache key: all that a key covers stays as it is, also the environment.

Not changed are the processor, the kernel, the inode numbers, and the order of files that the build
itself makes: those need another machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from fabric.host.cancel import no_check
from fabric.jobs import Job


class Conditions(msgspec.Struct, frozen=True):
    """The conditions of a build."""

    host_name: str = "localhost"
    ahead: int = 0  # seconds that the clock is ahead (`fabric.building.clock`)
    #: variables of the programs that make the sandbox; none of theirs may reach the build
    variables: Mapping[str, str] = {}
    cpus: int = 0  # that are taken away, if one is left
    jobs: int = 0  # of make, more than usual
    folder: str = ""  # the end of the name of the scratch on this machine
    reordered: bool = False  # directories of sources and staged chunks list their files otherwise

    def jobs_of(self, job: Job, usual: int) -> int:
        """The number of make's jobs: never more than the chunk allows."""
        if job.max_jobs is None:
            return usual + self.jobs
        return max(1, job.max_jobs - self.jobs)

    @contextlib.contextmanager
    def fewer_cpus(self) -> Iterator[None]:
        """Programs that this thread starts meanwhile have fewer CPUs."""
        usual = os.sched_getaffinity(0)  # of this thread
        kept = _kept(usual, self.cpus)
        if kept == usual:
            yield
            return
        os.sched_setaffinity(0, kept)
        try:
            yield
        finally:
            os.sched_setaffinity(0, usual)

    def changed(self, *, clock: bool, jobs: bool) -> tuple[str, ...]:
        """The names of the conditions that are unlike `USUAL` on this machine.

        ``clock``: it is ahead.  ``jobs``: commands ran with another number of make's jobs.
        """
        cpus = os.sched_getaffinity(0)
        found = {
            "host-name": self.host_name != USUAL.host_name,
            "clock": clock,
            "locale": bool(self.variables),
            "cpus": _kept(cpus, self.cpus) != cpus,
            "jobs": jobs and bool(self.jobs),
            "directory": bool(self.folder),
            "file-order": self.reordered,
        }
        return tuple(name for name, is_so in found.items() if is_so)


USUAL = Conditions()
#: Another year, month, day, hour and minute.
OTHER = Conditions(
    host_name="elsewhere.invalid",
    ahead=(373 * 24 + 7) * 3600 + 13 * 60,
    # no tool of the sandbox has messages in Icelandic, and errors of these tools are parsed
    variables={
        **dict.fromkeys(("LANG", "LC_ALL"), "is_IS.UTF-8"),
        "LANGUAGE": "is",
        "TZ": "XXX-13:45",
        "USER": "somebody",
        "HOME": "/nonexistent",
    },
    cpus=1,
    jobs=1,
    folder="-elsewhere",
    reordered=True,
)
#: All names of `Conditions.changed`.
NAMES = ("host-name", "clock", "locale", "cpus", "jobs", "directory", "file-order")


def conditions_of(job: Job) -> Conditions:
    """The conditions under which a job is built."""
    return OTHER if job.rebuild_of else USUAL


def reorder(trees: Sequence[Path], into: Path, check: Callable[[], None] = no_check) -> None:
    """Fill the empty directory ``into``: as the lowest layer below ``trees``, it changes the order
    in which the directories of the overlay list their entries.

    Overlayfs lists the entries of the lowest layer first.  This one has all directories and, of
    every second file, the name: the file of the tree covers it.  So a directory with no file, or
    with one that is last, keeps its order.
    """
    for tree in trees:
        pending = [b""]
        while pending:
            check()
            parent = pending.pop()
            files = 0
            for name, is_folder in _listed(os.fsencode(tree) + b"/" + parent):
                made = os.fsencode(into) + b"/" + parent + name
                with contextlib.suppress(FileExistsError):
                    if is_folder:
                        pending.append(parent + name + b"/")
                        os.mkdir(made)  # noqa: PTH102  bytes
                    elif files % 2:
                        os.mknod(made)
                files += not is_folder


def _listed(folder: bytes) -> list[tuple[bytes, bool]]:
    """The names in a folder, and whether each is a folder; none if it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return [(each.name, each.is_dir(follow_symlinks=False)) for each in entries]
    except PermissionError:
        return []


def _kept(cpus: set[int], fewer: int) -> set[int]:
    """The CPUs that are left of ``cpus``; all if they are too few."""
    return set(sorted(cpus)[:-fewer]) if 0 < fewer < len(cpus) else cpus
