"""Who follows which request, what they have seen, and when they may be told more."""

from __future__ import annotations

from collections.abc import Container, Iterator

from fabric import bounds

#: Seconds between two updates to one follower, at least, but for the last.
UPDATE_EVERY = 0.05
#: Seconds after its last word that a follower counts; it polls each second.
HERE = 3.5


class Watcher:
    """Somebody who follows a request."""

    __slots__ = ("due", "heard", "owner", "peer", "request", "seen")

    def __init__(self, request: str, peer: bytes, owner: str) -> None:
        self.request = request
        self.peer = peer
        self.owner = owner  # the name whose peer it is, "" if it needs none
        self.seen = 0  # version of the last Update it is known to have
        self.due = 0.0  # when it may be told more
        self.heard = 0.0


class Watchers:
    """All of them.  News is gathered until it may be told."""

    def __init__(self) -> None:
        self._all: dict[str, dict[bytes, Watcher]] = {}  # request -> peer -> watcher
        self._of: dict[str, dict[Watcher, None]] = {}  # by owner, those silent longest first
        self._curious: dict[Watcher, None] = {}  # there is news for them, or they asked

    def watch(self, request: str, peer: bytes, now: float, seen: int = 0, owner: str = "") -> None:
        """A peer follows a request, and is told how it stands as soon as it may be."""
        watchers = self._all.setdefault(request, {})
        watcher = watchers.get(peer)
        if watcher is None:
            watcher = watchers[peer] = Watcher(request, peer, owner)
        watcher.seen, watcher.heard = seen, now
        self._curious[watcher] = None
        its = self._of.setdefault(watcher.owner, {})
        its.pop(watcher, None)
        its[watcher] = None
        if watcher.owner and len(its) > bounds.FOLLOWED:
            silent = next(iter(its))
            self.unwatch(silent.request, silent.peer)

    def unwatch(self, request: str, peer: bytes) -> None:
        """A peer is gone, or its request is."""
        watchers = self._all.get(request, {})
        watcher = watchers.pop(peer, None)
        if watcher is not None:
            self._curious.pop(watcher, None)
            its = self._of[watcher.owner]
            del its[watcher]
            if not its:
                del self._of[watcher.owner]
            if not watchers:
                del self._all[request]

    def watched(self, request: str, now: float) -> bool:
        """Whether anybody follows it, as far as can be heard.

        A peer that connected anew counts under its former name, too, until that is silent.
        """
        return any(now - each.heard <= HERE for each in self._all.get(request, {}).values())

    def sweep(self, requests: Container[str]) -> None:
        """Forget those who follow what is not among these requests."""
        for watcher in [each for some in self._all.values() for each in some.values()]:
            if watcher.request not in requests:
                self.unwatch(watcher.request, watcher.peer)

    def news(self, request: str, *, last: bool) -> None:
        """A request has news; the last of it is told at once."""
        for watcher in self._all.get(request, {}).values():
            self._curious[watcher] = None
            if last:
                watcher.due = 0.0

    def next_due(self) -> float:
        """When somebody may be told news; infinity if there is none."""
        return min((watcher.due for watcher in self._curious), default=float("inf"))

    def take(self, now: float) -> Iterator[Watcher]:
        """Those to be told now, each once until there is more."""
        for watcher in [each for each in self._curious if each.due <= now]:
            del self._curious[watcher]
            watcher.due = now + UPDATE_EVERY
            yield watcher

    def put_off(self, watcher: Watcher) -> None:
        """One that was taken is told later, after all others."""
        self._curious[watcher] = None
