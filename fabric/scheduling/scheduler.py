"""The core: every event of the farm, and the effects that follow from it.

`Scheduler.handle(event, now)` is the only way in.  It is pure: the same events at the same times
give the same effects.  Times are seconds on any clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fabric.scheduling import events, queries, requests, retries, snapshots, store, updates, workers
from fabric.scheduling.dispatch import dispatch
from fabric.scheduling.lifecycle import start_checked
from fabric.scheduling.model import Durations, Limits
from fabric.scheduling.operators import on_command
from fabric.scheduling.state import FarmState
from fabric.wire import messages as msg


def on_tick(state: FarmState, _: events.Tick) -> None:
    requests.validate_more(state)
    retries.fail_unserved(state)


HANDLERS: dict[type, Callable[[FarmState, Any], None]] = {
    msg.Report: workers.on_report,
    msg.BuildOrder: requests.on_order,
    msg.BuildGraph: requests.on_graph,
    msg.Poll: requests.on_poll,
    msg.Leave: requests.on_leave,
    msg.Command: on_command,
    events.Resolved: requests.on_resolved,
    events.Unresolved: requests.on_unresolved,
    events.NotJournaled: requests.on_not_journaled,
    events.Remembered: requests.on_remembered,
    events.Reopened: requests.on_reopened,
    events.StoreAnswered: store.on_answered,
    events.StoreCompared: store.on_compared,
    events.StoreFailed: store.on_store_failed,
    events.StoreInspected: store.on_inspected,
    events.Tick: on_tick,
}


class Scheduler:
    """Handles events one after the other.

    ``epoch`` is larger in each run of the broker than in all before, so that fences and versions
    grow over restarts; with ``secret``, the same in all, attempts of former runs are recognized.
    ``durations`` are the seconds that builds took; ``drained`` names the workers that an operator
    has drained (see `events.Drained`).  With ``recovering``, workers may run attempts of a former
    run: nothing is assigned until they had time to report these, or tasks would run twice.
    """

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
        self.state = state = FarmState(
            limits, durations or {}, epoch=epoch, secret=secret, drained=drained, now=now
        )
        if recovering:
            state.dispatch_from = now + limits.settle
            state.timers.start(state.dispatch_from, _wake)
        state.timers.start(state.grace_until, workers.end_grace)

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        """Handle one event; returns what the shell has to do now, in order.

        IllegalTransition (a bug) if the table of `states` does not allow what it would do.
        """
        state = self.state
        state.now = now
        if now - state.awake > state.limits.lease / 2:
            forgive_standstill(state)
        state.awake = now
        HANDLERS[type(event)](state, event)
        timers = state.timers
        while timers.due <= now:
            action, subject = timers.pop()
            action(state, subject)
        if state.checking:
            start_checked(state)
        dispatch(state)
        return state.outbox.flush()

    def next_due(self) -> float:
        """When the next `Tick` is due, at the latest."""
        if self.state.validations:
            return self.state.now
        return min(self.state.awake + 1.0, self.state.timers.due)

    def desired(self, name: str) -> msg.Desired | None:
        """The desired state of a worker; None if there is no such worker."""
        state = self.state
        worker = state.workers.get(name)
        if worker is None:
            return None
        state.answers += 1
        return snapshots.desired(state, worker, state.answers)

    def update(self, request: str, seen: int, now: float) -> msg.Update | None:
        """A request's news since version ``seen``; None if there is no such request."""
        known = self.state.requests.get(request)
        return None if known is None else updates.update(self.state, known, seen, now)

    def answer(self, query: msg.Query, now: float) -> msg.Answer:
        """The answer to a query; changes nothing."""
        return queries.answer(self.state, query, now)


def forgive_standstill(state: FarmState) -> None:
    """This process did not run for a while, so the silence of its peers proves nothing."""
    slept = state.now - state.awake
    for worker in state.workers.values():
        worker.heard += slept
    for request in state.requests.values():
        request.heard += slept


def _wake(_: FarmState, __: None) -> None:
    """Assigning starts."""
