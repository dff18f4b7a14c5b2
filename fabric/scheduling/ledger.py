"""The core's tables, and what is gathered while one event is handled."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

from fabric.scheduling.events import Ask, Changed, Desire, Effect, Refuse
from fabric.scheduling.model import (
    DEFAULT_SECONDS,
    STORY_LENGTH,
    Attempt,
    Durations,
    Limits,
    Request,
    Requester,
    Task,
    Transition,
    Worker,
)
from fabric.scheduling.pools import Pools
from fabric.scheduling.states import TABLE, Cause, IllegalTransition, State
from fabric.wire.messages import Code, StepSpec

#: Keys in one question, and pieces of rubbish removed at a time: neither takes long.
MANY = 500
#: Seconds between such times: what nobody waits for is not to keep anybody waiting.
PAUSE = 0.005


class _Step:
    """A line of the table of transitions, and how many times tasks went that way."""

    __slots__ = ("then", "times")

    def __init__(self, then: State) -> None:
        self.then = then
        self.times = 0


class Ledger:
    """All that one broker knows.  Changed by `interest` and `fleet` only."""

    # There are more of these than a dict of attributes is fast with (30), and each event asks for
    # very many of them.
    __slots__ = (
        "_asks", "_changes", "_checking", "_removed", "_rubbish", "_steps", "_timers", "answers",
        "capacity", "count", "desires", "durations", "effects", "fence", "ghosts", "grace_until",
        "limits", "now", "pools", "questions", "reopened", "requesters", "requests", "strays",
        "tasks", "versions", "workers",
    )  # fmt: skip

    def __init__(self, limits: Limits, durations: Durations, first: int, now: float) -> None:
        self.limits = limits
        self.now = now
        self.durations = dict(durations)
        self.tasks: dict[str, Task] = {}
        self._steps = {way: _Step(then) for way, then in TABLE.items()}
        self._removed = dict.fromkeys(State, 0)  # tasks that are no more, by their last state
        self.workers: dict[str, Worker] = {}
        self.requests: dict[str, Request] = {}
        self.requesters: dict[str, Requester] = {}  # of requests that are not over
        self.pools = Pools(limits, self.workers)
        self.capacity = 0  # slots of all workers
        self.fence = first
        #: grows with the version of every request: one that comes a second time begins above
        self.versions = first
        self.count = 0  # numbers tasks, workers, requests, questions
        self.strays: dict[str, Attempt] = {}  # running, but not (yet) of any running task
        #: doomed, not known to have ended: key -> (worker, fence) -> attempt
        self.ghosts: dict[str, dict[tuple[str, int], Attempt]] = {}
        #: artifacts that were there once, and are to be there again
        self.reopened: dict[str, Task] = {}
        self.questions: dict[int, list[Task]] = {}
        self.answers = 0  # the sequence of the last Desired
        self.grace_until = now + limits.grace
        self._rubbish: list[dict[str, Any] | list[Any]] = []
        self._checking: dict[str, Request] = {}  # not all they need is known
        self._timers: list[tuple[float, int, Callable[[Any], None], Any]] = []
        # gathered during one event
        self.effects: list[Effect] = []
        self.desires: dict[str, None] = {}
        self._changes: dict[str, None] = {}
        self._asks: list[Task] = []

    def flush(self) -> list[Effect]:
        """The effects of one event, each thing asked for once."""
        effects = self.effects
        if self._asks:
            self._put_questions()
        if self.desires:
            effects.extend(map(Desire, self.desires))
            self.desires = {}
        for id in self._changes:
            request = self.requests.get(id)
            if request is not None:
                effects.append(Changed(id, request.over))
        self._changes = {}
        self.effects = []
        return effects

    def _put_questions(self) -> None:
        asks = [task for task in self._asks if task.requests]
        self._asks = []
        for first in range(0, len(asks), MANY):
            some = asks[first : first + MANY]
            self.count += 1
            for task in some:
                task.question = self.count
            self.questions[self.count] = some
            self.effects.append(Ask(self.count, tuple([task.key for task in some])))

    def _timer(self, due: float, action: Callable[[Any], None], subject: object) -> None:
        self.count += 1
        heappush(self._timers, (due, self.count, action, subject))

    # -- rubbish -----------------------------------------------------------------------------

    def throw_away(self, *heaps: dict[str, Any] | list[Any]) -> None:
        """Let go of all that is in these, but not at once: freeing a lot takes long."""
        being_swept = bool(self._rubbish)
        self._rubbish.extend(heap for heap in heaps if len(heap) > MANY)
        if self._rubbish and not being_swept:
            self._timer(self.now + PAUSE, self._sweep, None)

    def _sweep(self, _: object) -> None:
        """Free some of what was thrown away."""
        heap = self._rubbish[-1]
        if isinstance(heap, list):
            del heap[-MANY:]
        else:
            for _ in range(min(MANY, len(heap))):
                heap.popitem()
        if not heap:
            self._rubbish.pop()
        if self._rubbish:
            self._timer(self.now + PAUSE, self._sweep, None)

    # -- tasks -------------------------------------------------------------------------------

    @property
    def tally(self) -> dict[State, int]:
        """How many tasks are in each state."""
        found = {state: -count for state, count in self._removed.items()}
        found[State.ASKING] += len(self.tasks) + sum(self._removed.values())  # where all begin
        for (before, _), step in self._steps.items():
            found[before] -= step.times
            found[step.then] += step.times
        return found

    def move(self, task: Task, cause: Cause, detail: str = "") -> None:
        """A task goes where the table says.  IllegalTransition if it says nothing."""
        try:
            step = self._steps[task.state, cause]
        except KeyError:
            told = "; ".join(f"{line.cause} -> {line.state}" for line in task.story)
            raise IllegalTransition(
                f"{task.offer.name}: {cause.name} in state {task.state} (story: {told})"
            ) from None
        step.times += 1
        task.state = then = step.then
        story = task.story
        story.append(Transition(self.now, cause, then, detail))
        if len(story) > STORY_LENGTH:
            del story[1]  # how it began stays

    def remove(self, task: Task) -> None:
        """A task is no more."""
        del self.tasks[task.key]
        self._removed[task.state] += 1

    # -- what is asked for ---------------------------------------------------------------------

    def ask(self, task: Task) -> None:
        """Put a task to the store at the end of this event."""
        self._asks.append(task)

    def _refuse(self, about: str, code: Code, reason: str) -> None:
        self.effects.append(Refuse(about, code, reason))

    # -- news ------------------------------------------------------------------------------

    def touch(self, task: Task) -> None:
        """There is news of a task, for all who want it."""
        self.versions += len(task.requests)
        for id, request in task.requests.items():
            request.news.append(task.key)
            self._changes[id] = None

    def _news(self, request: Request, key: str = "") -> None:
        """There is news of one of its steps, or of a request itself."""
        self.versions += 1
        request.news.append(key)
        self._changes[request.id] = None

    # -- what is expected ------------------------------------------------------------------

    def expected(self, offer: StepSpec) -> float:
        """Seconds a step should take."""
        return self.expectation(offer)[0]

    def expectation(self, offer: StepSpec) -> tuple[float, bool]:
        """That, and whether it is a guess (a stratum takes no time to speak of)."""
        kind = offer.kind
        seconds = self.durations.get((kind, offer.name, offer.arch))
        if seconds is not None:
            return seconds, False
        return DEFAULT_SECONDS.get(kind, 60.0), kind != "stratum"
