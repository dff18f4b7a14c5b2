"""The broker: connects workers and initiators to the core, in one thread with one poller.

It turns messages into events of the core, `fabric.scheduling`; `fabric.controller.effects` carries
out the core's effects.  The loop decides nothing and never waits: threads query the store and write
the journal, and a peer that does not read loses messages, which are repeated.  A reply is sent when
the journal entries that it depends on are durable.
"""

from __future__ import annotations

import argparse
import gc
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from fabric import config
from fabric.config import BrokerSettings
from fabric.controller.blame import requests_in_traceback
from fabric.controller.effects import Effects
from fabric.controller.history import AttemptHistory
from fabric.controller.journal import Journal
from fabric.controller.log_relay import LogRelay
from fabric.controller.metrics import Metrics
from fabric.controller.outbox import ReplyOutbox
from fabric.controller.parts import Parts, Wakeup
from fabric.controller.resolver_pool import ResolverPool
from fabric.controller.spools import Spools
from fabric.controller.store_client import StoreClient
from fabric.controller.telemetry import Telemetry
from fabric.errors import FabricError
from fabric.host import daemon
from fabric.host.event_log import EventLog
from fabric.host.process import die_with_parent, more_descriptors
from fabric.host.sd_notify import Supervisor
from fabric.scheduling import events
from fabric.scheduling.model import Limits
from fabric.scheduling.scheduler import Scheduler
from fabric.wire import keys, sockets
from fabric.wire.messages import (
    BuildGraph,
    BuildOrder,
    Command,
    FromPeer,
    Leave,
    LogPiece,
    LogRead,
    Poll,
    Query,
    Report,
)
from fabric.wire.server import Server
from fabric.wire.sockets import Addresses

if TYPE_CHECKING:
    from fabric.trove.artifacts.store import Store

#: Seconds between two sweeps.
SWEEP_EVERY = 60.0
#: Seconds that workers of an embedded fabric may take to start, on a busy machine.  If they end
#: instead, the build fails at once.
_STARTUP = 60.0


class Broker:
    """One run of a broker on ``parts``, which it closes.

    With ``lasting`` it restores the requests of the run before it, and leaves its own to the next.
    """

    def __init__(self, parts: Parts, *, lasting: bool) -> None:
        self._clock = parts.clock
        self._wake = parts.wake
        self._server = parts.server
        self._spools = parts.spools
        self._telemetry = parts.telemetry
        self._store_client = parts.store_client
        self._resolvers = parts.resolvers
        self._new_core = parts.new_core
        self._scheduler = self._new_core()
        self._stopping = False
        self._now = self._clock()
        self._sweep_due = self._now + 1.0  # not while it starts
        self._routes: dict[str, bytes] = {}  # worker -> identity of its peer
        journal = self._telemetry.journal
        # nobody asks an embedded broker about former builds
        restored = journal.stored_attempts(self._now) if lasting else ()
        history = AttemptHistory(journal.epoch, restored)
        self._outbox = ReplyOutbox(journal, self._server.send, history)
        self._effects = Effects(parts, self._outbox, history)
        self._logs = LogRelay(parts, self._routes)
        if lasting:  # no initiator returns to a request of an embedded broker
            self._restore()

    def _restore(self) -> None:
        """Restore the requests in the journal; set those aside that the core cannot handle."""
        while (effects := self._try_to_restore()) is None:
            self._scheduler = self._new_core()  # the former one has half of a bad request
        self._effects.carry_out(effects, self._scheduler, self._now)

    def _try_to_restore(self) -> list[events.Effect] | None:
        """The effects of all stored requests; None if one of them was set aside."""
        journal = self._telemetry.journal
        effects: list[events.Effect] = []
        event: events.Event
        for request in journal.stored_requests():
            event = request.event
            if not isinstance(event, events.Remembered):
                event = events.Reopened(event, request.ago)
            try:
                effects += self._scheduler.handle(event, self._now)
            except Exception as error:  # noqa: BLE001 - the broker must start
                journal.set_aside(request.id, request.data, error)
                return None
        return effects

    def run(self) -> None:
        """Serve until `stop` is called."""
        supervisor = Supervisor()
        supervisor.ready()
        while not self._stopping:
            left = max(0.0, self.due() - self._clock())
            self._server.wait(math.ceil(left * 1000))
            try:
                self.turn()
            except Exception as error:
                # The core is inconsistent now.  The next run restores the other requests.
                for id, intent in requests_in_traceback(error).items():
                    self._telemetry.abandoned(id, intent, self._scheduler, error)
                raise
            supervisor.alive(self._now)
        supervisor.stopping()

    def turn(self) -> None:
        """Handle all that was received, and send the results.  Never waits."""
        self._now = self._clock()
        self._receive_messages()
        self._receive_results()
        self._logs.receive_published(self._now)
        self._run_timers()
        self._effects.flush()
        self._send_desired()
        self._outbox.send_due(self._scheduler, self._now)

    def due(self) -> float:
        """When the next `turn` is due if nothing is received before."""
        return min(
            self._scheduler.next_due(),
            self._outbox.due(),
            self._spools.next_due(),
            self._resolvers.next_due(),
            self._server.due,
            self._telemetry.due,
        )

    def stop(self) -> None:
        """End `run` soon.  Any thread, and a signal handler, may call this."""
        self._stopping = True
        self._wake()

    def close(self, *, forget_logs: bool = False) -> None:
        """Release everything.  Work in flight goes on, and the next run adopts it."""
        self._server.close()
        self._resolvers.close()
        self._store_client.close()
        self._telemetry.close()
        self._spools.close(forget=forget_logs)
        self._wake.close()

    # -- one turn of the loop ------------------------------------------------------------------

    def _receive_messages(self) -> None:
        self._server.authenticate(self._now)
        for peer, sender, message in self._server.receive():
            if not self._outbox.rejects(peer, message, self._scheduler):
                self._dispatch(peer, sender, message)

    def _dispatch(self, peer: bytes, sender: str, message: FromPeer) -> None:
        """Handle a message of the peer whose key has the name ``sender``."""
        subscriptions = self._outbox.subscriptions
        match message:
            case Report():
                self._handle(message, peer)
                worker = self._scheduler.state.workers.get(message.name)
                if worker is not None and worker.instance == message.instance:
                    self._routes[message.name] = peer
            case BuildOrder() | BuildGraph():
                subscriptions.subscribe(message.request, peer, self._now, owner=sender)
                self._handle(message, peer)
            case Poll():
                subscriptions.subscribe(
                    message.request, peer, self._now, message.seen, owner=sender
                )
                self._handle(message, peer)
            case Leave():
                subscriptions.unsubscribe(message.request, peer)
                if not subscriptions.has_subscribers(message.request, self._now):
                    self._handle(message, peer)
            case Command():
                self._handle(message, peer)
            case Query():
                self._outbox.answer(peer, message, self._scheduler, self._now)
            case LogPiece():
                self._logs.receive_requested(sender, message)
            case LogRead():
                self._logs.read(sender, peer, message)

    def _handle(self, event: events.Event, peer: bytes = b"") -> None:
        effects = self._scheduler.handle(event, self._now)
        self._effects.carry_out(effects, self._scheduler, self._now, peer)

    def _receive_results(self) -> None:
        lost = self._outbox.check_journal()
        for event in (*lost, *self._store_client.answers(), *self._resolvers.answers()):
            self._handle(event)
        self._logs.send_stored()

    def _run_timers(self) -> None:
        if self._now >= self._scheduler.next_due():
            self._handle(events.Tick())
        if self._server.refresh_keys(self._now):
            self._routes.clear()
            self._outbox.clear()
        self._telemetry.measure(self._scheduler, self._now)
        if self._now >= self._sweep_due:
            self._sweep_due = self._now + SWEEP_EVERY
            self._sweep()

    def _sweep(self) -> None:
        """Remove logs, subscriptions and routes that have no use any more."""
        if not self._scheduler.state.requesters:
            gc.collect()
        self._spools.sweep(self._now)
        self._spools.sweep_files()
        self._outbox.subscriptions.sweep(self._scheduler.state.requests)
        for worker in self._routes.keys() - self._scheduler.state.workers.keys():
            del self._routes[worker]

    def _send_desired(self) -> None:
        for worker in self._effects.changed_workers:
            desired = self._scheduler.desired(worker)
            route = self._routes.get(worker)
            if desired is None or route is None:
                continue
            if self._spools.lacking:
                # A worker may delete a log once its outcome is acked: wait until it is complete.
                acked = tuple(
                    attempt
                    for attempt in desired.acked
                    if not self._spools.incomplete(attempt.key, attempt.fence, self._now)
                )
                desired = msgspec.structs.replace(desired, acked=acked)
            self._server.send(route, desired)
        self._effects.changed_workers.clear()


def assemble(
    addresses: Addresses,
    state: Path,
    open_store: Callable[[], Store],
    limits: Limits | None = None,
    keys_dir: Path | None = None,
    resolver: Sequence[str] = (),
    event_log: EventLog | None = None,
    metrics: Metrics | None = None,
) -> Broker:
    """A broker that listens at ``addresses``, with journal and logs in the directory ``state``.

    With ``keys_dir``, only the keys admitted there can connect.  ``resolver`` is the command that
    resolves build orders; with it, requests go on after a restart.  AddressError, KeyProblem,
    MachineFault or OSError if the broker cannot start.
    """
    curve = None if keys_dir is None else keys.of_broker(keys_dir)
    admitted = None if keys_dir is None else keys.AuthorizedKeys(keys_dir)
    event_log = event_log or EventLog("fabric-broker")
    wake = Wakeup()
    lasting = bool(resolver)
    server = Server(addresses, event_log, wake=wake.fd, curve=curve, admitted=admitted)
    journal = Journal(state / "journal.sqlite", event_log, wake, needed=lasting)

    def new_core() -> Scheduler:
        return Scheduler(
            limits,
            epoch=journal.epoch,
            secret=journal.secret,
            durations=journal.durations,
            drained=journal.drained_workers,
            # Even without open requests: workers may still run attempts of requests that ended.
            # Workers of an embedded broker end with it.
            recovering=lasting and not journal.first,
            now=time.monotonic(),
        )

    parts = Parts(
        clock=time.monotonic,
        wake=wake,
        server=server,
        spools=Spools(state / "logs"),
        telemetry=Telemetry(journal, event_log, metrics),
        store_client=StoreClient(open_store, wake, countersigns=curve is not None),
        resolvers=ResolverPool(resolver, wake),
        new_core=new_core,
    )
    return Broker(parts, lasting=lasting)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = daemon.parser("fabric-broker", __doc__ or "", config.BROKER_FILE)
    top.add_argument(
        "--state", type=Path, default="state", help="embedded: directory of the journal and logs"
    )
    top.add_argument("--store", metavar="URL", help="embedded: the artifact store")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a broker; returns its exit code."""
    options = parser().parse_args(argv)
    if options.parent:
        die_with_parent(options.parent)
    try:
        settings = _settings(options)
    except FabricError as error:
        return _failed(error)
    if options.check_config:
        print(config.shown(settings))
        return 0
    return _run(settings, options.config, options.directory, forget=options.parent is not None)


def run_embedded(settings: config.Settings, directory: Path) -> int:
    """Run the broker of an initiator, with its sockets in ``directory``; returns its exit code."""
    mine = BrokerSettings(**config.common(settings), state=str(settings.state_dir))
    return _run(mine, config.BROKER_FILE, directory, forget=True)


def _run(settings: BrokerSettings, file: Path, directory: Path | None, *, forget: bool) -> int:
    try:
        more_descriptors()
        broker = _broker(settings, file, directory)
    except (FabricError, OSError) as error:
        return _failed(error)
    serve(broker, forget_logs=forget)
    return 0


def _failed(error: FabricError | OSError) -> int:
    EventLog("fabric-broker")(str(error))
    return error.exit_code if isinstance(error, FabricError) else 4


def serve(broker: Broker, *, forget_logs: bool = False) -> None:
    """Run a broker until SIGTERM or SIGINT, and close it."""
    # Objects made while serving live long and are rarely in cycles.  A full collection takes long,
    # so `Broker` runs it when there are no requests.
    gc.freeze()
    gc.set_threshold(20_000, 1_000_000, 1_000_000)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: broker.stop())
    try:
        broker.run()
    finally:
        broker.close(forget_logs=forget_logs)


def _settings(options: argparse.Namespace) -> BrokerSettings:
    if options.directory is not None:
        common = config.common(config.load_settings(overrides={"artifacts": options.store}))
        return BrokerSettings(**common, state=str(options.state))
    for warning in config.unknown_variables():
        print(f"fabric-broker: warning: {warning}", file=sys.stderr)
    settings = config.load(BrokerSettings, options.config)
    if settings.plain:
        sockets.check_plain(settings.listen)
    return settings


def _broker(settings: BrokerSettings, file: Path, directory: Path | None) -> Broker:
    log = EventLog("fabric-broker", chatty=directory is None)

    def store() -> Store:
        from fabric.trove.configured import open_store  # slow to import; a thread calls this

        return open_store(settings, settings.state_dir / "scratch", log)

    if directory is not None:
        limits = Limits(startup=_STARTUP)
        return assemble(sockets.in_directory(directory), settings.state_dir, store, limits)
    return assemble(
        sockets.over_tcp(settings.listen, settings.port),
        settings.state_dir,
        store,
        Limits(
            lease=settings.lease,
            losses=settings.losses,
            faults=settings.faults,
            unserved=settings.no_worker_timeout,
        ),
        None if settings.plain else settings.keys_dir,
        (sys.executable, "-m", "fabric.controller.resolver", "--config", str(file)),
        log,
        Metrics(settings.metrics) if settings.metrics else None,
    )


def program() -> NoReturn:
    """Run `main` as the program."""
    daemon.run(main)


if __name__ == "__main__":
    program()
