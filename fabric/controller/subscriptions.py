"""Records which peer follows which request, the version it has, and when its update is due."""

from __future__ import annotations

from collections.abc import Container, Iterator

from fabric import bounds

#: Least seconds between two updates of a subscription; the last update does not wait.
UPDATE_EVERY = 0.05
#: Seconds after its last message for which a subscriber counts as present; it polls each second.
PRESENT = 3.5


class Subscription:
    """One peer that follows one request."""

    __slots__ = ("due", "heard", "owner", "peer", "request", "seen")

    def __init__(self, request: str, peer: bytes, owner: str) -> None:
        self.request = request
        self.peer = peer
        self.owner = owner  # name in the peer's key, "" without keys
        self.seen = 0  # version of the last Update that it has
        self.due = 0.0  # when the next update may be sent
        self.heard = 0.0


class Subscriptions:
    """All subscriptions.  Changes are gathered until an update is due."""

    def __init__(self) -> None:
        self._all: dict[str, dict[bytes, Subscription]] = {}  # request -> peer -> subscription
        self._by_owner: dict[str, dict[Subscription, None]] = {}  # longest silent first
        self._pending: dict[Subscription, None] = {}  # they get an update

    def subscribe(
        self, request: str, peer: bytes, now: float, seen: int = 0, owner: str = ""
    ) -> None:
        """Note that a peer follows a request and has version ``seen``; it gets an update."""
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
        """End a subscription, if there is one."""
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
        """Whether a subscriber of the request is present.

        A peer that reconnected has a new identity; the former one counts until it expires.
        """
        return any(now - each.heard <= PRESENT for each in self._all.get(request, {}).values())

    def sweep(self, requests: Container[str]) -> None:
        """End subscriptions to all but these requests."""
        for subscription in [each for some in self._all.values() for each in some.values()]:
            if subscription.request not in requests:
                self.unsubscribe(subscription.request, subscription.peer)

    def changed(self, request: str, *, last: bool) -> None:
        """Note that a request has changed; after the ``last`` change, updates are due at once."""
        for subscription in self._all.get(request, {}).values():
            self._pending[subscription] = None
            if last:
                subscription.due = 0.0

    def next_due(self) -> float:
        """When the next update is due; infinity if none is pending."""
        return min((subscription.due for subscription in self._pending), default=float("inf"))

    def take(self, now: float) -> Iterator[Subscription]:
        """Subscriptions whose updates are due; each is pending no more."""
        for subscription in [each for each in self._pending if each.due <= now]:
            del self._pending[subscription]
            subscription.due = now + UPDATE_EVERY
            yield subscription

    def postpone(self, subscription: Subscription) -> None:
        """Make a subscription from `take` pending again, after all others."""
        self._pending[subscription] = None
