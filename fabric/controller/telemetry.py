"""Records events of the broker in the journal, in the event log, and as metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from fabric.controller.blame import fault_text
from fabric.controller.metrics import EVERY, Counts, Metrics
from fabric.scheduling.events import Opened
from fabric.wire.messages import PROTOCOL, Query, Update

if TYPE_CHECKING:
    from fabric.controller.history import EndedAttempt
    from fabric.controller.journal import Journal
    from fabric.host.event_log import EventLog
    from fabric.scheduling.events import Closed
    from fabric.scheduling.model import Task
    from fabric.scheduling.scheduler import Scheduler
    from fabric.wire.messages import BuildGraph, BuildOrder


class Telemetry:
    """Passes the core's effects on to the journal, the event log and the metrics."""

    def __init__(self, journal: Journal, event_log: EventLog, metrics: Metrics | None) -> None:
        self.event_log = event_log
        self.journal = journal
        self._metrics = metrics
        self._counts = Counts(Counter(), Counter())
        #: when `measure` is due
        self.due = math.inf if metrics is None else 0.0

    def close(self) -> None:
        """Close the journal and the metrics."""
        self.journal.close()
        if self._metrics is not None:
            self._metrics.close()

    def opened(self, effect: Opened) -> None:
        """Record that a request began."""
        self.journal.opened(effect)
        by = effect.intent.requester
        text = f"request {effect.request}{by and ' of '}{by}: {effect.title}"
        self.event_log.info(text, request=effect.request, requester=by)

    def closed(self, effect: Closed, outcome: Update | None) -> None:
        """Record that a request is over; ``outcome`` is None if it is forgotten at once."""
        if outcome is None:
            self.journal.forgotten(effect.request)
        else:
            self.journal.closed(outcome)
        self._counts.requests[effect.state] += 1
        text = f"request {effect.request}: {effect.state} {outcome.message if outcome else ''}"
        self.event_log.info(text, request=effect.request)

    def abandoned(
        self,
        id: str,
        intent: BuildOrder | BuildGraph | None,
        scheduler: Scheduler,
        error: Exception,
    ) -> None:
        """Record that a request failed by an internal error: the next run must not restore it.

        ``intent`` is its message, if the core was handling that.
        """
        if intent is not None:
            self.journal.opened(Opened(id, intent.title, intent))
        known = scheduler.state.requests.get(id) or intent
        message = fault_text(error)
        outcome = Update(id, scheduler.state.versions + 1, "failed", message=message)
        self.journal.closed(replace(outcome, title=known.title if known else ""))
        self.event_log(f"request {id} is given up: {message}")

    def ended(self, attempt: EndedAttempt, tasks: Mapping[str, Task]) -> None:
        """Record that an attempt ended; ``tasks`` has its task if that is still wanted."""
        self.journal.ended(attempt)
        self._counts.attempts[attempt.result] += 1
        if self.event_log.informs:  # not in an embedded broker: there are many
            task = tasks.get(attempt.key)
            self.event_log.info(
                f"{attempt.name or attempt.key[:12]} on {attempt.worker}: {attempt.result}",
                request=task.requests if task is not None else (),
                step=attempt.name,
                key=attempt.key,
                fence=str(attempt.fence),
                worker=attempt.worker,
                result=attempt.result,
            )

    def received_log(self, size: int) -> None:
        """Count received bytes of logs."""
        self._counts.log_bytes += size

    def measure(self, scheduler: Scheduler, now: float) -> None:
        """Take a snapshot of the metrics, if it is due."""
        if self._metrics is not None and now >= self.due:
            self.due = now + EVERY
            workers = scheduler.answer(Query(PROTOCOL, "", "workers"), now)
            writable = not self.journal.error
            self._metrics.take(scheduler, workers, self._counts, writable=writable)
