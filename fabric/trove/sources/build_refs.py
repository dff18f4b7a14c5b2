"""Manages build refs: the commits in the trove that users order to be built.

A farm builds commits, but users build what they are editing.  Therefore the initiator makes a
commit of it (`fabric.trove.sources.snapshot`) and pushes it as ``refs/builds/USER/REQUEST``.  The
id of a request begins with its time, so the names alone show which refs are old.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress, silent
from fabric.trove.sources import snapshot
from fabric.trove.sources.farm_remote import Trove
from fabric.trove.sources.git import Repository
from fabric.trove.sources.snapshot import INDEX, TAKEN, Snapshot, user

#: Seconds that a build ref stays which no live build needs: it may be just about to be ordered.
SPARE = 3600.0
#: Seconds in which a build's commit is pushed, or ordered no more.
PUSHED = 86400.0
#: Seconds after which the index of a folder from which nothing is ordered any more goes.
KEEP = 30 * 86400.0
#: Seconds between two looks for old refs.
TIDY_EVERY = 86400.0


def new_request() -> str:
    """An id for a request: 32 hex digits, the first 12 of them its time in milliseconds."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def ref_of(request: str) -> str:
    """The build ref of a request of ours."""
    return f"refs/builds/{user()}/{request}"


def stale(refs: Iterable[str], live: Collection[str], now: float) -> Iterator[str]:
    """Those of the build refs that can go.  ``live``: requests that are not over."""
    for ref in refs:
        request = ref.rpartition("/")[2]
        try:
            age = now - int(request[:12], 16) / 1000
        except ValueError:  # somebody else's way of naming
            continue
        if age > SPARE and request not in live:
            yield ref


class Builds:
    """The build commits of this machine, kept in a repository at ``path``."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository(path)

    def snapshot(self, root: Path) -> Snapshot:
        """What is below ``root`` now.  SourceError if that cannot be taken in."""
        self.repository.create(cache=True)
        return snapshot.take(root, self.repository.path)

    def push(self, build: Snapshot, trove: Trove, ref: str, progress: Progress) -> None:
        """Make it ``ref`` of the trove.  TroveError says why not, and what to do."""
        refspecs = [f"{build.commit}:{ref}"]
        trove.push(self.repository, refspecs, progress, CancelToken(), build.environ)

    def tidy(self, trove: Trove, live: Collection[str]) -> int:
        """Remove refs of this user that are of no use any more; how many.  TroveError."""
        self.repository.create(cache=True)
        self.prune(PUSHED)
        old = list(stale(trove.refs(f"refs/builds/{user()}/*"), live, time.time()))
        if old:
            trove.push(self.repository, [f":{ref}" for ref in old], silent, CancelToken())
        self._tidied.touch()
        return len(old)

    def prune(self, older_than: float, *, dry_run: bool = False) -> int:
        """Remove objects of builds ordered so many seconds ago, and not of what was taken in since;
        how many bytes that frees.  What was not pushed yet is younger than PUSHED.
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
