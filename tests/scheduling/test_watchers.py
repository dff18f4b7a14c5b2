"""Who follows which request, and when they are told."""

import pytest

from fabric import bounds
from fabric.controller.subscriptions import HERE, UPDATE_EVERY, Watchers


def told(watchers: Watchers, now: float) -> list[tuple[str, bytes, int]]:
    return [(each.request, each.peer, each.seen) for each in watchers.take(now)]


def test_whoever_asks_is_told_once() -> None:
    watchers = Watchers()
    watchers.watch("r1", b"a", 0.0)
    assert watchers.next_due() <= 0.0
    assert told(watchers, 10.0) == [("r1", b"a", 0)]
    assert told(watchers, 20.0) == []
    assert watchers.next_due() == float("inf")


def test_news_is_gathered() -> None:
    watchers = Watchers()
    watchers.watch("r1", b"a", 0.0)
    told(watchers, 10.0)
    for _ in range(5):
        watchers.news("r1", last=False)
        assert told(watchers, 10.0 + UPDATE_EVERY / 2) == []
    assert watchers.next_due() == 10.0 + UPDATE_EVERY
    assert told(watchers, 10.0 + UPDATE_EVERY) == [("r1", b"a", 0)]


def test_the_last_news_is_told_at_once() -> None:
    watchers = Watchers()
    watchers.watch("r1", b"a", 0.0)
    told(watchers, 10.0)
    watchers.news("r1", last=True)
    assert told(watchers, 10.0) == [("r1", b"a", 0)]


def test_each_is_told_from_what_it_has_seen() -> None:
    watchers = Watchers()
    watchers.watch("r1", b"a", 0.0, 3)
    watchers.watch("r1", b"b", 0.0, 7)
    watchers.watch("r2", b"a", 0.0, 1)
    assert told(watchers, 1.0) == [("r1", b"a", 3), ("r1", b"b", 7), ("r2", b"a", 1)]
    watchers.news("r1", last=False)
    assert [peer for _, peer, _ in told(watchers, 2.0)] == [b"a", b"b"]


def test_those_who_are_gone_are_forgotten() -> None:
    watchers = Watchers()
    watchers.watch("r1", b"a", 0.0)
    watchers.watch("r1", b"b", 0.0)
    watchers.watch("r2", b"c", 0.0)
    watchers.unwatch("r1", b"a")
    watchers.unwatch("r1", b"never there")
    watchers.unwatch("r9", b"a")
    assert told(watchers, 1.0) == [("r1", b"b", 0), ("r2", b"c", 0)]
    watchers.sweep({"r2"})
    watchers.news("r1", last=True)
    assert told(watchers, 9.0) == []


def test_who_is_silent_does_not_count_as_there() -> None:
    """A connection that was made anew must not keep a request that its user leaves."""
    watchers = Watchers()
    watchers.watch("r1", b"former", 10.0)
    watchers.watch("r1", b"present", 10.0 + HERE)
    assert watchers.watched("r1", 10.0 + HERE)
    watchers.unwatch("r1", b"present")
    assert watchers.watched("r1", 10.0 + HERE)
    assert not watchers.watched("r1", 10.1 + HERE)
    assert not watchers.watched("r2", 0.0)


@pytest.mark.bound("FOLLOWED")
def test_of_what_one_name_follows_the_longest_silent_goes() -> None:
    watchers = Watchers()
    for n in range(bounds.FOLLOWED):
        watchers.watch(f"r{n}", b"a", 0.0, owner="m")
    watchers.watch("r0", b"b", 0.0, owner="another")
    watchers.watch("r0", b"a", 0.0, owner="m")  # not silent
    watchers.watch("more", b"a", 0.0, owner="m")
    followed = told(watchers, 0.0)
    assert ("r0", b"a", 0) in followed
    assert ("r0", b"b", 0) in followed
    assert ("r1", b"a", 0) not in followed
    assert len(followed) == bounds.FOLLOWED + 1
    for request, peer, _ in followed:
        watchers.unwatch(request, peer)
    assert not watchers._of
