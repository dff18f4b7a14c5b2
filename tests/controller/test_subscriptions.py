"""Subscriptions to requests, and when their updates are due."""

import pytest

from fabric import bounds
from fabric.controller.subscriptions import PRESENT, UPDATE_EVERY, Subscriptions


def told(subscriptions: Subscriptions, now: float) -> list[tuple[str, bytes, int]]:
    return [(each.request, each.peer, each.seen) for each in subscriptions.take(now)]


def test_subscription_gets_one_update_for_each_poll() -> None:
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"a", 0.0)
    assert subscriptions.next_due() <= 0.0
    assert told(subscriptions, 10.0) == [("r1", b"a", 0)]
    assert told(subscriptions, 20.0) == []
    assert subscriptions.next_due() == float("inf")


def test_subscription_changes_are_gathered() -> None:
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"a", 0.0)
    told(subscriptions, 10.0)
    for _ in range(5):
        subscriptions.changed("r1", last=False)
        assert told(subscriptions, 10.0 + UPDATE_EVERY / 2) == []
    assert subscriptions.next_due() == 10.0 + UPDATE_EVERY
    assert told(subscriptions, 10.0 + UPDATE_EVERY) == [("r1", b"a", 0)]


def test_subscription_last_update_does_not_wait() -> None:
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"a", 0.0)
    told(subscriptions, 10.0)
    subscriptions.changed("r1", last=True)
    assert told(subscriptions, 10.0) == [("r1", b"a", 0)]


def test_subscription_updates_begin_at_its_version() -> None:
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"a", 0.0, 3)
    subscriptions.subscribe("r1", b"b", 0.0, 7)
    subscriptions.subscribe("r2", b"a", 0.0, 1)
    assert told(subscriptions, 1.0) == [("r1", b"a", 3), ("r1", b"b", 7), ("r2", b"a", 1)]
    subscriptions.changed("r1", last=False)
    assert [peer for _, peer, _ in told(subscriptions, 2.0)] == [b"a", b"b"]


def test_subscription_ends_when_its_peer_is_gone() -> None:
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"a", 0.0)
    subscriptions.subscribe("r1", b"b", 0.0)
    subscriptions.subscribe("r2", b"c", 0.0)
    subscriptions.unsubscribe("r1", b"a")
    subscriptions.unsubscribe("r1", b"never there")
    subscriptions.unsubscribe("r9", b"a")
    assert told(subscriptions, 1.0) == [("r1", b"b", 0), ("r2", b"c", 0)]
    subscriptions.sweep({"r2"})
    subscriptions.changed("r1", last=True)
    assert told(subscriptions, 9.0) == []


def test_subscription_of_a_silent_peer_does_not_count() -> None:
    """A former connection must not keep a request alive that its user leaves."""
    subscriptions = Subscriptions()
    subscriptions.subscribe("r1", b"former", 10.0)
    subscriptions.subscribe("r1", b"present", 10.0 + PRESENT)
    assert subscriptions.has_subscribers("r1", 10.0 + PRESENT)
    subscriptions.unsubscribe("r1", b"present")
    assert subscriptions.has_subscribers("r1", 10.0 + PRESENT)
    assert not subscriptions.has_subscribers("r1", 10.1 + PRESENT)
    assert not subscriptions.has_subscribers("r2", 0.0)


@pytest.mark.bound("FOLLOWED")
def test_subscription_past_the_bound_ends_the_longest_silent() -> None:
    subscriptions = Subscriptions()
    for n in range(bounds.FOLLOWED):
        subscriptions.subscribe(f"r{n}", b"a", 0.0, owner="m")
    subscriptions.subscribe("r0", b"b", 0.0, owner="another")
    subscriptions.subscribe("r0", b"a", 0.0, owner="m")  # not silent
    subscriptions.subscribe("more", b"a", 0.0, owner="m")
    followed = told(subscriptions, 0.0)
    assert ("r0", b"a", 0) in followed
    assert ("r0", b"b", 0) in followed
    assert ("r1", b"a", 0) not in followed
    assert len(followed) == bounds.FOLLOWED + 1
    for request, peer, _ in followed:
        subscriptions.unsubscribe(request, peer)
    assert not subscriptions._by_owner
