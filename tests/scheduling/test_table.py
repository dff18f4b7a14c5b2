"""The table of transitions itself."""

import pytest
from scheduling_kit import offers_of

from fabric.scheduling.model import Task
from fabric.scheduling.states import LIVE, TABLE, Cause, IllegalTransition, State, diagram


def test_what_the_table_does_not_list_raises_and_tells_the_story() -> None:
    [offer] = offers_of("zlib:")
    task = Task(offer.key, offer, 1, 60.0)
    task.move(Cause.ABSENT, 1.0)
    with pytest.raises(IllegalTransition, match=r"zlib: FINISHED in state blocked \(story: the"):
        task.move(Cause.FINISHED, 2.0)
    assert task.state is State.BLOCKED


def test_every_state_can_be_reached_and_left_but_the_last_ones() -> None:
    assert {*TABLE.values(), State.ASKING} == set(State)
    assert {state for state, _ in TABLE} == set(State) - {State.FAILED, State.DROPPED}


def test_whatever_is_live_can_be_dropped() -> None:
    for state in LIVE:
        assert TABLE[state, Cause.UNWANTED] is State.DROPPED


def test_the_diagram_shows_every_transition() -> None:
    lines = list(diagram())
    assert lines[0] == "stateDiagram-v2"
    told = sum(cause is not Cause.UNWANTED for _, cause in TABLE)
    assert sum(" --> " in line and "[*]" not in line for line in lines) == told
