"""Manages build refs: the commits of work trees that users submit for building.

A farm builds commits, but users build the files that they are editing.  So the initiator makes a
commit of them (`fabric.trove.sources.snapshot`) and pushes it as ``refs/builds/USER/REQUEST``.  A
request's id begins with its time, so the names alone show which refs are old.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress, silent
from fabric.trove.sources import snapshot
from fabric.trove.sources.farm_remote import Trove
from fabric.trove.sources.git import Repository
from fabric.trove.sources.snapshot import INDEX, TAKEN, Snapshot, user

#: Seconds that an unused build ref stays: its build may be about to be submitted.
SPARE = 3600.0
#: Seconds within which a build's commit is pushed, if ever.
PUSHED = 86400.0
#: Seconds after which the unused index of a folder is removed.
KEEP = 30 * 86400.0
#: Seconds between two searches for old refs.
TIDY_EVERY = 86400.0


def new_request() -> str:
    """An id for a request: 32 hex digits, the first 12 of them its time in milliseconds."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def ref_of(request: str) -> str:
    """The build ref of a request of ours."""
    return f"refs/builds/{user()}/{request}"


def stale(refs: Iterable[str], live: Collection[str], now: float) -> Iterator[str]:
    """The build refs that can be removed.  ``live``: requests that are not over."""
    for ref in refs:
        request = ref.rpartition("/")[2]
        try:
            age = now - int(request[:12], 16) / 1000
        except ValueError:  # a name of another form
            continue
        if age > SPARE and request not in live:
            yield ref


class Builds:
    """The build commits of this machine, kept in a repository at ``path``."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository(path)

    def snapshot(self, root: Path, along: Sequence[Snapshot] = ()) -> Snapshot:
        """A snapshot of the files below ``root``, with which the commits ``along`` are pushed.

        SourceError if that cannot be made.
        """
        self.repository.create(cache=True)
        return snapshot.take(root, self.repository.path, along)

    def push(self, build: Snapshot, trove: Trove, ref: str, progress: Progress) -> None:
        """Push a snapshot as ``ref`` of the trove.  TroveError if that fails."""
        refspecs = [f"{build.commit}:{ref}"]
        trove.push(self.repository, refspecs, progress, CancelToken(), build.environ)

    def tidy(self, trove: Trove, live: Collection[str]) -> int:
        """Remove this user's stale refs; return their number.  TroveError."""
        self.repository.create(cache=True)
        self.prune(PUSHED)
        old = list(stale(trove.refs(f"refs/builds/{user()}/*"), live, time.time()))
        if old:
            trove.push(self.repository, [f":{ref}" for ref in old], silent, CancelToken())
        self._tidied.touch()
        return len(old)

    def prune(self, older_than: float, *, dry_run: bool = False) -> int:
        """Remove objects of snapshots older than so many seconds, unless later ones have them;
        return how many bytes that frees.  Snapshots not pushed yet are younger than PUSHED.
        """
        path = self.repository.path
        if not path.exists():
            return 0
        taken = (self.repository.run("for-each-ref", "--format=%(refname)", TAKEN) or b"").split()
        for index in path.glob(f"{INDEX}*") if not dry_run else ():
            ref = f"{TAKEN}{index.name}"
            if ref.encode() not in taken or index.stat().st_mtime < time.time() - KEEP:
                index.unlink(missing_ok=True)
                self.repository.run("update-ref", "-d", ref)
        command = ("prune", f"--expire={max(older_than, PUSHED):.0f}.seconds.ago")
        freed = 0
        for line in (self.repository.run(*command, "--dry-run") or b"").splitlines():
            with suppress(FileNotFoundError):
                name = line[:40].decode()
                freed += (path / "objects" / name[:2] / name[2:]).stat().st_size
        if not dry_run:
            self.repository.run(*command)
        return freed

    def untidy(self) -> bool:
        """Whether it is time to `tidy`."""
        with suppress(FileNotFoundError):
            return time.time() - self._tidied.stat().st_mtime > TIDY_EVERY
        return True

    @property
    def _tidied(self) -> Path:
        return self.repository.path / "tidied"
