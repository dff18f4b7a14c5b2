"""What machines and the store get wrong: faults, refusals, damaged artifacts.

A *fault* is charged to the machine, which rests, and to the task, which others try.  A *refusal*
is neither: the task is offered elsewhere, and to this worker again after a while.

A worker that cannot use an artifact says so with the outcome of its attempt.  What it names goes
back to `ASKING`, and the attempt's task waits for it; so does whatever else would begin with it.
The store is inspected.  What is gone is rebuilt like anything absent, and that attempt was
nobody's fault; what is whole is cached, and the worker that complained is charged with a fault.
So a liar ends as a sick worker does, and nothing else is disturbed by it.
"""

from __future__ import annotations

from typing import NamedTuple

from fabric.scheduling.events import Inspect, Inspected
from fabric.scheduling.intake import Intake
from fabric.scheduling.model import Attempt, Durations, Limits, Refusal, Task, Worker
from fabric.scheduling.states import PRESENT, TABLE, Cause, State
from fabric.scheduling.unfit import unfit
from fabric.wire.messages import Outcome

#: Seconds that a worker gets nothing new after it refused something.
_PAUSE = 1.0


class _Complaint(NamedTuple):
    """A worker's, about what a task needs."""

    task: Task
    worker: str
    message: str
    keys: tuple[str, ...]


class Faults(Intake):
    """What is done about all that."""

    __slots__ = ("_complaints", "_inspected", "_inspections")

    def __init__(self, limits: Limits, durations: Durations, first: int, now: float) -> None:
        super().__init__(limits, durations, first, now)
        self._inspected: list[_Complaint] = []  # by the store, just now
        self._complaints: list[_Complaint] = []  # next
        self._inspections = 0  # times in a row that the store failed to answer

    # -- faults and refusals -------------------------------------------------------------------

    def faulted(self, task: Task, name: str, message: str, cause: Cause = Cause.FAULTED) -> None:
        """A machine was unable to do a task: another one may be able."""
        if not self._charge_fault(task, name, message):
            self.move(task, cause, f"{name}: {message}")
            self.expand(task)
            self.touch(task)

    def _charge_fault(self, task: Task, name: str, message: str) -> bool:
        """Whether that was one fault too many."""
        worker = self.workers.get(name)
        if worker is not None:
            self.rest_after_fault(worker)
        task.faults[name] = message
        task.fault_count += 1
        few = task.fault_count < self.limits.faults
        if few or (task.state, Cause.EXHAUSTED) not in TABLE:
            return False
        if len(task.faults) < self.limits.faults and self.pools.hope(task, self.now):
            return False  # one bad machine must not fail what a good one can do
        told = "; ".join(f"{name}: {message}" for name, message in task.faults.items())
        self.fail(task, Cause.EXHAUSTED, f"no machine could do it: {told}")
        return True

    def fail_unserved(self) -> None:
        """What no worker is able to do does not wait for ever.

        While there are no workers at all, nothing is known of what they will be able to do.
        """
        limit = self.limits.unserved
        if not limit or not self.workers:
            return
        for pool in self.pools.all():
            while not pool.members and self.now - pool.empty_since >= limit:
                task = pool.oldest(self.now)
                if task is None or self.now - task.story[-1].at < limit:
                    break
                reason = f"no worker was able to do it for {limit:.0f} s: "
                reason += "; ".join(unfit(task, self.workers.values()))
                self.fail(task, Cause.EXHAUSTED, reason)

    def rest_after_fault(self, worker: Worker) -> None:
        """A worker gets nothing new for a while, for longer after each fault in a row."""
        worker.faults += 1
        self._rest(worker, min(self.limits.rest, 2.0 ** (worker.faults - 1)))

    def refused(self, task: Task, worker: Worker, message: str) -> None:
        """A worker will not do a task now."""
        before = task.refusals.get(worker.name)
        until = self.now + self.limits.shun
        task.refusals[worker.name] = Refusal(until, message, before.count + 1 if before else 1)
        self._timer(until, self._offer_again, task)
        self._rest(worker, _PAUSE)
        self.move(task, Cause.REFUSED, f"{worker.name}: {message}")
        self.expand(task)
        self.touch(task)

    def _offer_again(self, task: Task) -> None:
        if task.state is State.READY:
            self.pools.choose(task, self.now)

    def _rest(self, worker: Worker, seconds: float) -> None:
        worker.rests_until = max(worker.rests_until, self.now + seconds)
        self._timer(worker.rests_until, self._rested, worker.name)
        self.pools.place(worker.name, self.now)

    def _rested(self, name: str) -> None:
        self.pools.place(name, self.now)

    # -- damaged artifacts ---------------------------------------------------------------------

    def complain(self, task: Task, attempt: Attempt, outcome: Outcome) -> bool:
        """An attempt found damaged what it needs.  False if that is nonsense."""
        needs = frozenset(task.offer.depends)
        suspects = [key for key in dict.fromkeys(outcome.damaged) if key in needs]
        if not suspects:
            return False
        doubted = []
        for key in suspects:
            suspect = self.tasks.get(key)
            # What came to be there after the attempt began is not what it means.
            if suspect is not None and suspect.state in PRESENT and suspect.since <= attempt.since:
                self._doubt(suspect, attempt.worker)
                doubted.append(key)
        if doubted:
            self._complaints.append(
                _Complaint(task, attempt.worker, outcome.message, tuple(doubted))
            )
            self._inspect()
        self.move(task, Cause.DAMAGED, f"{attempt.worker}: {outcome.message}")
        self.wait_again(task)
        return True

    def wait_again(self, task: Task) -> None:
        """Look anew at what a task depends on."""
        task.expanded = False
        self.expand(task)
        self.touch(task)

    def in_doubt(self, key: str) -> bool:
        """Whether an artifact is being inspected, or soon will be."""
        return any(key in each.keys for each in (*self._inspected, *self._complaints))

    def _doubt(self, task: Task, worker: str) -> None:
        self.move(task, Cause.DOUBTED, worker)
        self.reopened[task.key] = task
        for request in task.requests.values():
            self.open(request, task)
            request.asking[task.key] = None
        self.touch(task)

    def _inspect(self) -> None:
        if self._complaints and not self._inspected:
            self._inspected, self._complaints = self._complaints, []
            self._inspect_again(None)

    def _inspect_again(self, _: None) -> None:
        keys = dict.fromkeys(key for each in self._inspected for key in each.keys)
        self.effects.append(Inspect(tuple(keys), self._inspected[0].worker))

    def _verdict(self, event: Inspected) -> None:
        """The store has been inspected."""
        complaints, self._inspected = self._inspected, []
        suspects = dict.fromkeys(key for each in complaints for key in each.keys)
        if event.failure:
            self._inspections += 1
            if self._inspections < self.limits.asks:
                self._timer(self.now + 0.25 * 2.0**self._inspections, self._inspect_again, None)
                # What is gone is known, what is whole is not.
                self._inspected = complaints
                for key in suspects:
                    if key in event.keys:
                        self._settle(key, event)
                return
        else:
            for task, worker, message, keys in complaints:
                if self.tasks.get(task.key) is task and event.keys.isdisjoint(keys):
                    self._charge_fault(task, worker, message)
        self._inspections = 0
        for key in suspects:
            self._settle(key, event)
        self._inspect()

    def _settle(self, key: str, event: Inspected) -> None:
        """What is to be done about one artifact that was doubted."""
        suspect = self.tasks.get(key)
        if suspect is None:
            return
        gone = key in event.keys
        if gone and suspect.state in PRESENT:  # wanted again after it had been dropped
            self._doubt(suspect, "the store")
        if suspect.state is not State.ASKING or self.reopened.get(key) is not suspect:
            return
        if gone:
            self._rebuild(suspect)
        elif event.failure:
            reason = f"the artifact store does not answer: {event.failure}"
            self.fail(suspect, Cause.EXHAUSTED, reason)
        else:
            self.present(suspect)

    def _rebuild(self, task: Task) -> None:
        task.damages += 1
        if task.damages >= self.limits.damages:
            reason = f"the artifact store spoilt it {task.damages} times"
            self.fail(task, Cause.EXHAUSTED, reason)
        else:
            self.absent(task)
