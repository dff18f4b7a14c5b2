"""Records which peer follows which request, what it has seen, and when it gets more."""

from __future__ import annotations

from collections.abc import Container, Iterator

from fabric import bounds

#: Seconds between two updates to one follower, at least, but for the last.
UPDATE_EVERY = 0.05
#: Seconds after its last word that a follower counts; it polls each second.
PRESENT = 3.5


class Subscription:
    """Somebody who follows a request."""

    __slots__ = ("due", "heard", "owner", "peer", "request", "seen")

    def __init__(self, request: str, peer: bytes, owner: str) -> None:
        self.request = request
        self.peer = peer
        self.owner = owner  # the name whose peer it is, "" if it needs none
        self.seen = 0  # version of the last Update it is known to have
        self.due = 0.0  # when it may be told more
        self.heard = 0.0


class Subscriptions:
    """All of them.  News is gathered until it may be told."""

    def __init__(self) -> None:
        self._all: dict[str, dict[bytes, Subscription]] = {}  # request -> peer -> subscription
        self._by_owner: dict[
            str, dict[Subscription, None]
        ] = {}  # by owner, those silent longest first
        self._pending: dict[Subscription, None] = {}  # there is news for them, or they asked

    def subscribe(
        self, request: str, peer: bytes, now: float, seen: int = 0, owner: str = ""
    ) -> None:
        """A peer follows a request, and is told how it stands as soon as it may be."""
        subscriptions = self._all.setdefault(request, {})
        subscription = subscriptions.get(peer)
        if subscription is None:
            subscription = subscriptions[peer] = Subscription(request, peer, owner)
        subscription.seen, subscription.heard = seen, now
        self._pending[subscription] = None
        its = self._by_owner.setdefault(subscription.owner, {})
        its.pop(subscription, None)
        its[subscription] = None
        if subscription.owner and len(its) > bounds.FOLLOWED:
            silent = next(iter(its))
            self.unsubscribe(silent.request, silent.peer)

    def unsubscribe(self, request: str, peer: bytes) -> None:
        """A peer is gone, or its request is."""
        subscriptions = self._all.get(request, {})
        subscription = subscriptions.pop(peer, None)
        if subscription is not None:
            self._pending.pop(subscription, None)
            its = self._by_owner[subscription.owner]
            del its[subscription]
            if not its:
                del self._by_owner[subscription.owner]
            if not subscriptions:
                del self._all[request]

    def has_subscribers(self, request: str, now: float) -> bool:
        """Whether anybody follows it, as far as can be heard.

        A peer that connected anew counts under its former name, too, until that is silent.
        """
        return any(now - each.heard <= PRESENT for each in self._all.get(request, {}).values())

    def sweep(self, requests: Container[str]) -> None:
        """Forget those who follow what is not among these requests."""
        for subscription in [each for some in self._all.values() for each in some.values()]:
            if subscription.request not in requests:
                self.unsubscribe(subscription.request, subscription.peer)

    def changed(self, request: str, *, last: bool) -> None:
        """A request has news; the last of it is told at once."""
        for subscription in self._all.get(request, {}).values():
            self._pending[subscription] = None
            if last:
                subscription.due = 0.0

    def next_due(self) -> float:
        """When somebody may be told news; infinity if there is none."""
        return min((subscription.due for subscription in self._pending), default=float("inf"))

    def take(self, now: float) -> Iterator[Subscription]:
        """Those to be told now, each once until there is more."""
        for subscription in [each for each in self._pending if each.due <= now]:
            del self._pending[subscription]
            subscription.due = now + UPDATE_EVERY
            yield subscription

    def postpone(self, subscription: Subscription) -> None:
        """One that was taken is told later, after all others."""
        self._pending[subscription] = None
