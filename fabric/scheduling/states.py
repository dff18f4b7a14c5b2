"""The table of transitions of a task.  A transition that it does not list is an error.

A task is the work for one artifact.  The interest of a request in it (`model.Request`) and the
attempt at it on one worker (`model.Attempt`) are separate, so there is no state for cancelling: a
task is dropped when the last request that wants it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum


class State(StrEnum):
    """The state of the work for one artifact."""

    ASKING = "asking"
    BLOCKED = "blocked"
    COMPARING = "comparing"
    READY = "ready"
    RUNNING = "running"
    VERIFYING = "verifying"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


MEANING = {
    State.ASKING: "the store is queried for it",
    State.BLOCKED: "the store does not have it, and a dependency is missing",
    State.COMPARING: "its dependencies are there, and the store is queried for equal contents",
    State.READY: "its dependencies are there, and it waits for a worker",
    State.RUNNING: "an attempt runs on a worker",
    State.VERIFYING: "a worker reported it done, and the store is queried for it",
    State.CACHED: "the store had it already",
    State.DONE: "it was built, and the store has it",
    State.FAILED: "its build fails, or no worker could do it",
    State.DROPPED: "no request wants it any more",
}


class Cause(StrEnum):
    """The reason for a transition."""

    PRESENT = "the store has it"
    ABSENT = "the store does not have it"
    UNANSWERED = "the store does not answer"
    UNBLOCKED = "nothing blocks it any more"
    FAMILIAR = "its dependencies are as those of an earlier build may have been"
    EQUAL = "the store has a step with equal contents"
    DIFFERENT = "no step with equal contents is known"
    DYING = "an earlier attempt has not ended yet"
    ASSIGNED = "assigned to a worker"
    ADOPTED = "a worker already runs it"
    FINISHED = "the worker reported it done"
    BROKE = "a build command failed"
    FAULTED = "the machine could not do it"
    RETURNED = "the worker handed it back"
    REFUSED = "the worker refuses it for now"
    UNTAKEN = "the worker did not start it"
    DAMAGED = "a dependency is damaged"
    SUSPECTED = "a worker found it damaged"
    LOST = "the worker was lost"
    EXHAUSTED = "it was tried often enough"
    UNWANTED = "no request wants it any more"


S, C = State, Cause

#: The artifact is in the store.
PRESENT = frozenset({S.CACHED, S.DONE})
#: Work remains to be done.
LIVE = frozenset({S.ASKING, S.BLOCKED, S.COMPARING, S.READY, S.RUNNING, S.VERIFYING})

TABLE: dict[tuple[State, Cause], State] = {
    (S.ASKING, C.PRESENT): S.CACHED,
    (S.ASKING, C.ABSENT): S.BLOCKED,
    (S.ASKING, C.UNANSWERED): S.ASKING,
    (S.ASKING, C.EXHAUSTED): S.FAILED,
    (S.BLOCKED, C.UNBLOCKED): S.READY,
    (S.BLOCKED, C.FAMILIAR): S.COMPARING,
    (S.BLOCKED, C.ADOPTED): S.RUNNING,
    (S.BLOCKED, C.EXHAUSTED): S.FAILED,
    (S.COMPARING, C.EQUAL): S.CACHED,
    (S.COMPARING, C.DIFFERENT): S.READY,
    (S.COMPARING, C.ADOPTED): S.RUNNING,
    (S.READY, C.ASSIGNED): S.RUNNING,
    (S.READY, C.ADOPTED): S.RUNNING,
    (S.READY, C.DYING): S.BLOCKED,
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
    (S.VERIFYING, C.UNANSWERED): S.VERIFYING,
    (S.VERIFYING, C.EXHAUSTED): S.FAILED,
    (S.CACHED, C.SUSPECTED): S.ASKING,
    (S.DONE, C.SUSPECTED): S.ASKING,
    **{(state, C.UNWANTED): S.DROPPED for state in S if state in LIVE},
}


class IllegalTransition(AssertionError):
    """An event asked for a transition that the table does not list: a bug of the core."""


def table() -> Iterator[str]:
    """The table as lines of Markdown, as the page on the architecture shows it."""
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
