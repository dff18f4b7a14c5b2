"""Stores sources in a farm's trove, a single repository (decision 8).

::

    refs/tags/NAME/1.3.1      tag 1.3.1 of the source NAME, such as "upstream/zlib.git"
    refs/heads/NAME/main      its branch
    refs/pins/NAME/<pin>      a commit, by its id, and also by the import key of its lorry

Names are for people, and move.  Pins never move: two users whose lorries pin different commits
under one name each find their own, and a job's sources stay as long as their pin.  With a ref for
each commit, any git server serves it; servers with git's protocol 2 or
``uploadpack.allowAnySHA1InWant`` serve commits without a ref, too.
"""

from __future__ import annotations

import contextlib

import msgspec

from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress
from fabric.trove.sources.farm_remote import CommitNotServed, Trove, TroveError
from fabric.trove.sources.git import SHA, Repository

#: Attempts at a push.
_TRIES = 3


class Kept(msgspec.Struct, frozen=True):
    """A commit to be kept in the trove, with its source, pins and names there."""

    repository: Repository
    name: str  # "upstream/zlib.git"
    commit: str
    import_key: str  # "" if no lorry pins it
    ref: str  # its full name in ``repository``; "" for a commit without one

    def refs(self) -> list[str]:
        """The refs of the commit in the trove."""
        pins = [pin for pin in (self.commit, self.import_key) if pin]
        names = [f"refs/pins/{self.name}/{pin}" for pin in pins]
        return [*names, inside(self.name, self.ref)] if self.ref else names


def inside(name: str, ref: str) -> str:
    """The trove's ref for a source's ``ref`` (its full name)."""
    refs, kind, rest = ref.split("/", 2)
    return f"{refs}/{kind}/{name}/{rest}"


# Refspecs have an asterisk, because then one that matches nothing is no error.


def fetch_pin(
    trove: Trove,
    into: Repository,
    name: str,
    pin: str,
    ref: str,
    progress: Progress,
    cancel: CancelToken,
) -> None:
    """Fetch the commit of a pin, if there is one, as ``ref`` (a full name)."""
    trove.fetch(into, [f"+refs/pins/{name}/{pin}*:{ref}*"], progress, cancel)


def fetch_ref(
    trove: Trove, into: Repository, name: str, ref: str, progress: Progress, cancel: CancelToken
) -> None:
    """Fetch a tag, branch or commit, if there is one."""
    if SHA.fullmatch(ref):
        fetch_pin(trove, into, name, ref, f"refs/fabric/{ref}", progress, cancel)
        if into.find(ref) is None:
            with contextlib.suppress(CommitNotServed):
                trove.fetch(into, [f"{ref}:refs/fabric/{ref}"], progress, cancel)
        return
    full = [ref] if ref.startswith("refs/") else [f"refs/tags/{ref}", f"refs/heads/{ref}"]
    specs = [f"+{inside(name, one)}*:{one}*" for one in full if one.count("/") > 1]
    trove.fetch(into, specs, progress, cancel)


def push(trove: Trove, kept: list[Kept], progress: Progress, cancel: CancelToken) -> None:
    """Push the commits that the trove lacks.  TroveError if it refuses them.

    If others push the same at the same time, the ref may be locked, or exist already.
    """
    for attempt in range(_TRIES):
        there = trove.refs("refs/pins/*", "refs/tags/*", "refs/heads/*")
        lacking = [one for one in kept if any(there.get(ref) != one.commit for ref in one.refs())]
        try:
            for one in lacking:
                progress(f"{one.name.removesuffix('.git')}: pushing to the trove")
                specs = [f"{one.commit}:{ref}" for ref in one.refs()]
                trove.push(one.repository, specs, progress, cancel)
        except TroveError:
            if attempt == _TRIES - 1:
                raise
            cancel.pause(attempt + 1.0)
        else:
            return
