"""The core: every event of the fabric, and what follows from it.

`Scheduler.handle(event, now)` is the only way in.  It is pure: the same events at the same
times give the same effects.  Times are seconds on any clock that never goes back.

`ledger` holds the tables; `interest` is what requests do to them, `intake` how requests come and
go, `faults` what is done about machines and artifacts that fail, `fleet` what workers do.  Here
events come in, tasks meet workers, the store answers, and time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop
from typing import Any

from fabric.scheduling import answers, view
from fabric.scheduling.events import (
    Answered,
    Began,
    Effect,
    Event,
    Inspected,
    Learned,
    Remembered,
    Resolved,
    Tick,
    Unanswered,
    Unresolved,
    Unwritten,
)
from fabric.scheduling.fleet import Fleet
from fabric.scheduling.model import Attempt, Durations, Limits, Task
from fabric.scheduling.states import Cause, State
from fabric.wire.messages import (
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    Desired,
    Leave,
    Poll,
    Query,
    Report,
    Update,
)

#: Fences of one run of the broker start at its epoch times this.
FENCES = 1_000_000_000


class Scheduler(Fleet):
    """All state of one broker.

    ``epoch`` is larger in each run of the broker than in all before, so that fences and versions
    grow over restarts; with ``secret``, the same in all, attempts of former runs are known.
    ``durations`` tells how long builds took,
    ``drained`` which workers an operator wants to get nothing (see `events.Drained`).  With
    ``recovering``, if workers may be at something for a former run, nothing begins until they
    had time to say so: or it would run twice.
    """

    __slots__ = ("_awake", "_handlers", "settled_at")

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        epoch: int = 0,
        secret: bytes = b"",
        durations: Durations | None = None,
        drained: frozenset[str] = frozenset(),
        recovering: bool = False,
        now: float = 0.0,
    ) -> None:
        limits = limits or Limits()
        super().__init__(
            limits,
            durations or {},
            epoch=epoch,
            first=epoch * FENCES,
            secret=secret,
            drained=drained,
            now=now,
        )
        self._awake = now
        self.settled_at = now + limits.settle if recovering else now
        self._timer(self.settled_at, lambda _: None, None)  # things may begin
        self._timer(self.grace_until, self._end_grace, None)
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            Report: self._report,
            BuildOrder: self._order,
            BuildGraph: self._submit,
            Poll: self._poll,
            Leave: self._leave,
            Command: self._command,
            Resolved: self._resolved,
            Unresolved: self._unresolved,
            Answered: self._answered,
            Unanswered: self._unanswered,
            Inspected: self._verdict,
            Unwritten: self._unwritten,
            Remembered: self._remembered,
            Tick: self._ticked,
        }

    # -- the way in, and four ways to look --------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; what the shell has to do now, in order.

        IllegalTransition (a bug) if the table of `states` does not allow what it would do.
        """
        self.now = now
        self._wake_up()
        self._handlers[type(event)](event)
        self._pass_time()
        self.begin_checked()
        self._dispatch()
        return self.flush()

    def next_due(self) -> float:
        """When the next `Tick` is due, at the latest."""
        if self._studies:
            return self.now
        due = self._awake + 1.0
        return min(due, self._timers[0][0]) if self._timers else due

    def desired(self, name: str) -> Desired | None:
        """What a worker should be doing; None if there is no such worker."""
        worker = self.workers.get(name)
        if worker is None:
            return None
        self.answers += 1
        return view.desired(self, worker, self.answers)

    def update(self, request: str, seen: int, now: float) -> Update | None:
        """A request's news since version ``seen``; None if there is no such request."""
        known = self.requests.get(request)
        return None if known is None else view.update(self, known, seen, now)

    def answer(self, query: Query, now: float) -> Answer:
        """What somebody asks, answered; changes nothing."""
        return answers.answer(self, query, now)

    # -- dispatch --------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self.now < self.settled_at:
            return
        while (match := self.pools.match(self.now)) is not None:
            task, worker = match.task, match.worker
            if task.key in self.ghosts:
                self.move(task, Cause.GHOST)
                self.touch(task)
                continue
            if self.reopened and not self.reopened.keys().isdisjoint(task.offer.depends):
                self.move(task, Cause.DAMAGED)
                self.wait_again(task)
                continue
            self.fence += 1
            attempt = Attempt(
                task.key,
                self.fence,
                worker,
                self.now,
                self.token(task.key, self.fence, worker),
                told=self.answers + 1,
            )
            self.workers[worker].held[task.key, self.fence] = attempt
            self.move(task, Cause.ASSIGNED, worker)
            self.run(task, attempt, match.request)
            self.pools.place(worker, self.now)
            self.effects.append(Began(attempt.key, attempt.fence, worker, found=False))
            self.desires[worker] = None

    # -- the store -------------------------------------------------------------------------

    def _answered(self, answer: Answered) -> None:
        for task in self.questions.pop(answer.question):
            if task.question != answer.question:
                continue  # it was dropped meanwhile
            task.question = task.unanswered = 0
            self.free_seat(task)
            verifying = task.state is State.VERIFYING
            if task.key in answer.present:
                if verifying:
                    self._learn(task)
                self.present(task)
            elif verifying:
                self.faulted(task, task.builder, "what it built is not in the store", Cause.ABSENT)
            else:
                self.absent(task)

    def _learn(self, task: Task) -> None:
        if task.outcome is not None and task.outcome.seconds > 0:
            offer, seconds = task.offer, task.outcome.seconds
            what = (offer.kind, offer.name, offer.arch)
            seconds = (self.durations.get(what, seconds) + seconds) / 2  # old news counts half
            self.durations[what] = seconds
            self.effects.append(Learned(*what, seconds))

    def _unanswered(self, event: Unanswered) -> None:
        for task in self.questions.pop(event.question):
            if task.question != event.question:
                continue
            task.question = 0
            task.unanswered += 1
            if task.unanswered >= self.limits.asks:
                reason = f"the artifact store does not answer: {event.message}"
                self.fail(task, Cause.EXHAUSTED, reason)
            else:
                self.move(task, Cause.SILENT, event.message)
                self._timer(self.now + 0.25 * 2.0**task.unanswered, self._ask_again, task)

    def _ask_again(self, task: Task) -> None:
        asking = task.state in (State.ASKING, State.VERIFYING)
        if asking and not task.question and self.tasks.get(task.key) is task:
            self.ask(task)

    # -- time ------------------------------------------------------------------------------

    def _ticked(self, tick: Tick) -> None:
        self._tick(tick)
        self.fail_unserved()

    def _wake_up(self) -> None:
        slept = self.now - self._awake
        if slept > self.limits.lease / 2:
            # It was this process that did not run, so the others' silence proves nothing.
            for worker in self.workers.values():
                worker.heard += slept
            for request in self.requests.values():
                request.heard += slept
        self._awake = self.now

    def _pass_time(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            timer = heappop(self._timers)
            timer[2](timer[3])

    def _end_grace(self, _: None) -> None:
        for key, attempt in list(self.strays.items()):
            if key not in self.tasks:
                self.doom(attempt)
