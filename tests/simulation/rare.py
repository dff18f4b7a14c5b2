"""Rare things that must have happened somewhere in a long run: else it has not tried them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fabric.scheduling import events
from fabric.scheduling.scheduler import Scheduler
from fabric.scheduling.states import TABLE, Cause, State
from fabric.wire.messages import Report

#: What is looked for, besides every arrow of the core's table.
EVENTS = (
    "a slot is kept on a worker that is lost",
    "a lost worker comes back with what it had",
    "a lost worker comes back without what it had",
    "a former run of a worker is heard again",
    "two runs of a worker are heard by turns",
    "an outcome of a former broker's attempt comes",
    "an attempt of a former broker goes on",
    "an attempt begins while another one is stored",
    "an attempt that nobody wanted is done, and counts",
    "an attempt does not end when it is told to",
    "a journal that cannot be written takes a request back",
    "the broker stood still for half a lease",
    "the broker is killed while it writes",
    "the broker does not start",
    "the clock of the broker's machine went back",
    "a request ends while its logs are open",
    "a log is not whole",
    "a log is looked for in the store",
    "a log has a gap",
    "refused: bad-request",
    "refused: not-now",
    "refused: unknown-request",
    "refused: no-log",
)
#: Too rare to wait for: a worker reports an attempt of a former broker during one query.
#: `tests/scheduling/test_equal_steps.py` has it.
RARER = {(State.COMPARING, Cause.ADOPTED)}
WANTED = (*EVENTS, *(f"{state} -- {cause.name}" for state, cause in TABLE.keys() - RARER))


class Before:
    """What the core knew before an event, as far as it tells what is rare."""

    def __init__(self, core: Scheduler, event: events.Event, slept: float) -> None:
        self._slept = slept
        self._reserving = [name for name, worker in core.state.workers.items() if worker.reserved]
        self._cancelling: set[tuple[str, int]] = set()
        self._worker = None
        if isinstance(event, Report):
            self._worker = core.state.workers.get(event.name)
            if self._worker is not None:
                self._former = tuple(self._worker.former)
                held = self._worker.held.values()
                self._cancelling = {attempt.id for attempt in held if attempt.cancelling}

    def newly_reserved(self, core: Scheduler) -> list[str]:
        """Workers that keep a slot, and kept none before."""
        reserving = [name for name, worker in core.state.workers.items() if worker.reserved]
        return [name for name in reserving if name not in self._reserving]

    def rare(
        self, core: Scheduler, event: events.Event, effects: Sequence[events.Effect]
    ) -> Iterator[str]:
        """What rare things the event did."""
        if self._slept > core.state.limits.lease / 2:
            yield "the broker stood still for half a lease"
        if not core.state.workers.keys() >= set(self._reserving):
            yield "a slot is kept on a worker that is lost"
        if isinstance(event, events.NotJournaled):
            yield "a journal that cannot be written takes a request back"
        if isinstance(event, events.Tick) and any(
            attempt.stuck
            for worker in core.state.workers.values()
            for attempt in worker.held.values()
        ):
            yield "an attempt does not end when it is told to"
        if isinstance(event, Report):
            yield from self._reported(core, event, effects)

    def _reported(
        self, core: Scheduler, report: Report, effects: Sequence[events.Effect]
    ) -> Iterator[str]:
        worker = core.state.workers.get(report.name)
        if worker is None:
            return
        if self._worker is None:
            told = {(each.key, each.fence) for each in report.running}
            told |= {(each.key, each.fence) for each in report.finished}
            had = [e for e in effects if isinstance(e, events.Ended) and e.worker == report.name]
            if told & worker.held.keys():
                yield "a lost worker comes back with what it had"
            elif had:
                yield "a lost worker comes back without what it had"
        elif worker.instance in self._former:
            yield "a former run of a worker is heard again"
        elif worker.rival:
            yield "two runs of a worker are heard by turns"
        if worker.storing and len(worker.held) > worker.slots:
            yield "an attempt begins while another one is stored"
        found = {(e.key, e.fence) for e in effects if isinstance(e, events.Began) and e.found}
        for effect in effects:
            if not isinstance(effect, events.Ended) or effect.outcome is None:
                continue
            id = (effect.key, effect.fence)
            if id in found:
                yield "an outcome of a former broker's attempt comes"
                found.discard(id)
            task = core.state.tasks.get(effect.key)
            if id in self._cancelling and task is not None and task.outcome is effect.outcome:
                yield "an attempt that nobody wanted is done, and counts"
        if found:
            yield "an attempt of a former broker goes on"
