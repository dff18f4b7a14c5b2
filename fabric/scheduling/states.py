"""The one table of what may happen to a task.  Whatever it does not list is an error.

A task is the work for one artifact.  Who wants it is a thing apart (`model.Request`), and so is
the try at it on one machine (`model.Attempt`); cancelling is therefore no state: the last
interest leaves, and the task is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum


class State(StrEnum):
    """Where the work for one artifact stands."""

    ASKING = "asking"
    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    VERIFYING = "verifying"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


MEANING = {
    State.ASKING: "does the store have it?",
    State.BLOCKED: "it does not; something it needs is missing",
    State.READY: "everything is there but a worker",
    State.RUNNING: "an attempt is on a worker",
    State.VERIFYING: "a worker says it is done: does the store have it?",
    State.CACHED: "the store had it all along",
    State.DONE: "built, and the store has it",
    State.FAILED: "its build fails, or takes every machine down",
    State.DROPPED: "nobody wants it any more",
}


class Cause(StrEnum):
    """What moves a task from one state to another."""

    PRESENT = "the store has it"
    ABSENT = "the store does not have it"
    SILENT = "the store does not answer"
    FREED = "nothing stands in its way"
    GHOST = "an earlier attempt has not ended yet"
    ASSIGNED = "given to a worker"
    ADOPTED = "a worker already runs it"
    FINISHED = "the worker says it is done"
    BROKE = "a build command failed"
    FAULTED = "the machine could not do it"
    RETURNED = "the worker handed it back"
    REFUSED = "the worker will not do it now"
    UNTAKEN = "the worker did not take it"
    DAMAGED = "something it needs is damaged"
    DOUBTED = "a worker found it damaged"
    LOST = "the worker was lost"
    EXHAUSTED = "it was tried often enough"
    UNWANTED = "nobody wants it any more"


S, C = State, Cause

#: The artifact is in the store.
PRESENT = frozenset({S.CACHED, S.DONE})
#: Work remains to be done.
LIVE = frozenset({S.ASKING, S.BLOCKED, S.READY, S.RUNNING, S.VERIFYING})

TABLE: dict[tuple[State, Cause], State] = {
    (S.ASKING, C.PRESENT): S.CACHED,
    (S.ASKING, C.ABSENT): S.BLOCKED,
    (S.ASKING, C.SILENT): S.ASKING,
    (S.ASKING, C.EXHAUSTED): S.FAILED,
    (S.BLOCKED, C.FREED): S.READY,
    (S.BLOCKED, C.ADOPTED): S.RUNNING,
    (S.BLOCKED, C.EXHAUSTED): S.FAILED,
    (S.READY, C.ASSIGNED): S.RUNNING,
    (S.READY, C.ADOPTED): S.RUNNING,
    (S.READY, C.GHOST): S.BLOCKED,
    (S.READY, C.DAMAGED): S.BLOCKED,
    (S.READY, C.EXHAUSTED): S.FAILED,
    (S.RUNNING, C.FINISHED): S.VERIFYING,
    (S.RUNNING, C.BROKE): S.FAILED,
    (S.RUNNING, C.FAULTED): S.BLOCKED,
    (S.RUNNING, C.RETURNED): S.BLOCKED,
    (S.RUNNING, C.REFUSED): S.BLOCKED,
    (S.RUNNING, C.UNTAKEN): S.BLOCKED,
    (S.RUNNING, C.DAMAGED): S.BLOCKED,
    (S.RUNNING, C.LOST): S.BLOCKED,
    (S.RUNNING, C.EXHAUSTED): S.FAILED,
    (S.VERIFYING, C.PRESENT): S.DONE,
    (S.VERIFYING, C.ABSENT): S.BLOCKED,
    (S.VERIFYING, C.SILENT): S.VERIFYING,
    (S.VERIFYING, C.EXHAUSTED): S.FAILED,
    (S.CACHED, C.DOUBTED): S.ASKING,
    (S.DONE, C.DOUBTED): S.ASKING,
    **{(state, C.UNWANTED): S.DROPPED for state in S if state in LIVE},
}


class IllegalTransition(AssertionError):
    """An event came that the table does not know: a bug of the core, told with its story."""


def table() -> Iterator[str]:
    """The table as lines of Markdown, as docs/architecture.md shows it."""
    yield "| state | meaning | what happens, and where that leads |"
    yield "|---|---|---|"
    for state in State:
        ways = [
            f"{cause} → **{then}**"
            for (before, cause), then in TABLE.items()
            if before is state and cause is not C.UNWANTED
        ]
        yield f"| **{state}** | {MEANING[state]} | {'<br>'.join(ways)} |"


if __name__ == "__main__":
    print("\n".join(table()))
