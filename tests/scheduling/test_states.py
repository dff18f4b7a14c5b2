"""The table of transitions itself."""

import pytest
from machine_kit import specs_of

from fabric.scheduling.model import Limits, Task
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import LIVE, TABLE, Cause, IllegalTransition, State, table


def test_table_raises_for_what_it_does_not_list() -> None:
    [spec] = specs_of("zlib:")
    task = Task(spec.key, spec, 1, 60.0)
    state = FarmState(Limits(), {}, epoch=0, secret=b"", drained=frozenset(), now=0.0)
    state.tasks[task.key] = task
    state.transition(task, Cause.ABSENT)
    with pytest.raises(IllegalTransition, match=r"zlib: FINISHED in state blocked \(history: the"):
        state.transition(task, Cause.FINISHED)
    assert task.state is State.BLOCKED


def test_table_reaches_and_leaves_every_state_but_the_last() -> None:
    assert {*TABLE.values(), State.ASKING} == set(State)
    assert {state for state, _ in TABLE} == set(State) - {State.FAILED, State.DROPPED}


def test_table_drops_whatever_is_live() -> None:
    for state in LIVE:
        assert TABLE[state, Cause.UNWANTED] is State.DROPPED


def test_table_is_shown_with_every_transition() -> None:
    shown = "\n".join(table())
    told = sum(cause is not Cause.UNWANTED for _, cause in TABLE)
    assert shown.count("→") == told
    assert all(f"| **{state}** |" in shown for state in State)
