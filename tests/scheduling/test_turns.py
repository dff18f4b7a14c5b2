"""Turns beside the plain minimum of all loads, whatever begins and ends."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.scheduling.shares import Share
from fabric.scheduling.turns import Turns

SHARES = st.integers(min_value=0, max_value=2)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["add", "remove"]), SHARES, st.just(0.0)),
    st.tuples(st.sampled_from(["begin", "end"]), SHARES, st.just(0.0)),
    st.tuples(st.just("weigh"), SHARES, st.sampled_from([0.25, 1.0, 4.0])),
    st.tuples(st.just("wait"), SHARES, st.sampled_from([0.01, 30.0, 900.0])),
)


@settings(max_examples=300)
@given(st.lists(STEPS, min_size=30, max_size=60))
def test_turns_give_the_share_with_the_smallest_load(
    steps: list[tuple[str, int, float]],
) -> None:
    turns: Turns[int] = Turns()
    shares = [Share(number) for number in range(3)]
    present: set[int] = set()
    now = 100.0
    for what, number, value in steps:
        share = shares[number]
        if what == "add" and number not in present:
            turns.add(share, number, now)
            present.add(number)
        elif what == "remove" and number in present:
            turns.remove(share)
            present.remove(number)
        elif what == "begin":
            share.begin(now)
        elif what == "end" and share.running:
            share.end(20.0, now)
            turns.moved(share, now)
        elif what == "weigh":
            share.set_weight(value)
            turns.moved(share, now)
        elif what == "wait":
            now += value
        first = turns.first(now)
        least = min(present, key=lambda each: (shares[each].load(now), each), default=None)
        assert (None if first is None else first[1]) == least
        assert {*turns.all()} == present


def test_turns_that_nobody_reads_do_not_grow() -> None:
    turns: Turns[int] = Turns()
    shares = [Share(number) for number in range(2)]
    for share in shares:
        turns.add(share, share.number, 100.0)
    assert turns.first(100.0) == (shares[0], 0)
    for attempt in range(1000):
        shares[0].begin(101.0 + attempt)
        shares[0].end(1.0, 101.5 + attempt)
        turns.moved(shares[0], 101.5 + attempt)
    assert len(turns._heap) < 10
    assert turns.first(1101.0) == (shares[1], 1)
