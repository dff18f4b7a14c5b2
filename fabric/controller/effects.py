"""Carries out the effects of the core with the broker's parts.

Effects are carried out in their order.  Queries for the store are gathered until `Effects.flush`,
and so are the workers to which their desired state is to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fabric.controller.history import AttemptHistory
from fabric.controller.outbox import ReplyOutbox
from fabric.controller.parts import Parts
from fabric.jobs import tools_among
from fabric.scheduling import events
from fabric.scheduling.scheduler import Scheduler


class Effects:
    """A handler for each type of effect."""

    def __init__(self, parts: Parts, outbox: ReplyOutbox, history: AttemptHistory) -> None:
        self._server = parts.server
        self._spools = parts.spools
        self._telemetry = parts.telemetry
        self._store_client = parts.store_client
        self._resolvers = parts.resolvers
        self._outbox = outbox
        self._history = history
        self._queries: list[events.QueryStore | events.CompareStore] = []
        #: workers whose desired state has changed
        self.changed_workers: dict[str, None] = {}
        journal = parts.telemetry.journal
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.QueryStore: self._queries.append,
            events.CompareStore: self._queries.append,
            events.InspectStore: lambda effect: self._store_client.inspect(effect.keys),
            events.Resolve: self._resolve,
            events.Abandon: lambda effect: self._resolvers.abandon(effect.request),
            events.SendDesired: lambda effect: self.changed_workers.setdefault(effect.worker),
            events.Changed: self._changed,
            events.Reject: self._reject,
            events.Reply: lambda effect: self._outbox.add(self._peer, effect.answer),
            events.Drained: journal.drained,
            events.Opened: self._telemetry.opened,
            events.Closed: self._closed,
            events.Began: self._began,
            events.Ended: self._ended,
            events.Learned: journal.learned,
        }

    def carry_out(
        self, effects: Iterable[events.Effect], scheduler: Scheduler, now: float, peer: bytes = b""
    ) -> None:
        """Carry out the effects of an event that ``scheduler`` has handled, sent by ``peer``."""
        self._scheduler = scheduler
        self._now = now
        self._peer = peer
        handlers = self._handlers
        for effect in effects:
            handlers[type(effect)](effect)

    def flush(self) -> None:
        """Hand gathered work to the journal's writer and the store client."""
        self._telemetry.journal.flush()
        if self._queries:
            self._store_client.query(self._queries.copy())
            self._queries.clear()

    def _changed(self, effect: events.Changed) -> None:
        self._outbox.subscriptions.changed(effect.request, last=effect.over)

    def _reject(self, effect: events.Reject) -> None:
        self._server.reject(self._peer, effect.about, effect.code, effect.reason)
        self._outbox.subscriptions.unsubscribe(effect.about, self._peer)

    def _resolve(self, effect: events.Resolve) -> None:
        tools = tools_among(worker.features for worker in self._scheduler.state.workers.values())
        self._resolvers.resolve(effect.order, tools)

    def _closed(self, effect: events.Closed) -> None:
        self._telemetry.closed(effect, self._scheduler.update(effect.request, 0, self._now))

    def _began(self, effect: events.Began) -> None:
        self._spools.begin(effect.key, effect.fence, effect.worker, found=effect.found)

    def _ended(self, effect: events.Ended) -> None:
        size, sha256 = -1, ""
        if effect.outcome is not None:
            size, sha256 = effect.outcome.log_size, effect.outcome.log_sha256
        self._spools.end(effect.key, effect.fence, size, sha256, self._now)
        attempt = self._history.add(effect, self._now)
        self._telemetry.ended(attempt, self._scheduler.state.tasks)
