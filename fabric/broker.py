"""The broker: connects workers and initiators to the core, in one thread with one poller.

It turns messages into events of the core (`fabric.scheduling`), and carries out the core's
effects.  It decides nothing and waits for nothing: `fabric.controller.store_client` asks the store,
`fabric.controller.journal_writer` writes the journal, and a peer that does not read loses
messages, which it asks for again.  Initiators hear of nothing that a crash could still take back.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
import zmq

from fabric import config
from fabric.config import BrokerSettings
from fabric.controller.blame import requests_in_traceback
from fabric.controller.journal import Journal
from fabric.controller.metrics import Metrics
from fabric.controller.outbox import ReplyOutbox
from fabric.controller.resolver_pool import ResolverPool
from fabric.controller.spools import Spools
from fabric.controller.store_client import StoreClient
from fabric.controller.telemetry import Telemetry
from fabric.errors import FabricError
from fabric.host import daemon
from fabric.host.event_log import EventLog
from fabric.host.process import die_with_parent, more_descriptors
from fabric.host.sd_notify import Supervisor
from fabric.jobs import tools_among
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
    Published,
    Query,
    Report,
)
from fabric.wire.server import Server
from fabric.wire.sockets import Addresses

if TYPE_CHECKING:
    from fabric.trove.artifacts.store import Store

#: Seconds between sweeps of old logs.
SWEEP_EVERY = 60.0


class Wakeup:
    """Ends the broker's wait from another thread: call it.  ``fd`` is readable then."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # closed: nothing waits
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


class Parts(NamedTuple):
    """The surroundings of a broker, and its core.  `assemble` makes the real ones."""

    clock: Callable[[], float]  # monotonic seconds
    wake: Wakeup
    server: Server
    spools: Spools
    telemetry: Telemetry
    store_client: StoreClient
    resolvers: ResolverPool
    new_core: Callable[[], Scheduler]


class Broker:
    """One run of a broker on ``parts``, which it closes.

    With ``lasting`` it takes up the requests of the run before it, and leaves its own to the next.
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
        journal = self._telemetry.journal
        self._sweep_due = self._now + 1.0  # let the start be quick
        self._peer = b""  # who sent the message at hand
        self._routes: dict[str, bytes] = {}  # worker -> peer
        self._changed_workers: dict[str, None] = {}  # workers to be told
        self._queries: list[events.Ask] = []  # to be put to the store
        self._outbox = ReplyOutbox(journal, self._server.send)
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.Ask: self._queries.append,
            events.Inspect: lambda effect: self._store_client.inspect(effect.keys),
            events.Resolve: self._resolve,
            events.Abandon: lambda effect: self._resolvers.abandon(effect.request),
            events.Desire: lambda effect: self._changed_workers.setdefault(effect.worker),
            events.Changed: lambda it: self._outbox.subscriptions.changed(it.request, last=it.over),
            events.Refuse: self._refuse,
            events.Tell: lambda effect: self._outbox.add(self._peer, effect.answer),
            events.Drained: journal.drained,
            events.Opened: self._telemetry.opened,
            events.Closed: self._closed,
            events.Began: self._began,
            events.Ended: self._ended,
            events.Learned: journal.learned,
        }
        if lasting:  # else nobody comes back to what a former broker did
            self._restore()

    def _restore(self) -> None:
        """Take up what is written of requests; what the core cannot take is set aside."""
        while (effects := self._try_to_restore()) is None:
            self._scheduler = self._new_core()  # what the core has of a bad record is not whole
        for effect in effects:
            self._handlers[type(effect)](effect)

    def _try_to_restore(self) -> list[events.Effect] | None:
        """What follows from all records; None if there was a bad one."""
        journal = self._telemetry.journal
        effects: list[events.Effect] = []
        for record in journal.stored_requests():
            try:
                effects += self._scheduler.handle(record.event, self._now)
            except Exception as error:  # noqa: BLE001 - a broker that does not start helps nobody
                journal.set_aside(record.id, record.written, error)
                return None
        return effects

    def run(self) -> None:
        """Serve until told to stop."""
        supervisor = Supervisor()
        supervisor.ready()
        while not self._stopping:
            left = max(0.0, self.due() - self._clock())
            self._server.wait(math.ceil(left * 1000))
            try:
                self.turn()
            except Exception as error:
                # What the core has is not whole now: the next run takes up the other requests.
                for id, intent in requests_in_traceback(error).items():
                    self._telemetry.abandoned(id, intent, self._scheduler, error)
                raise
            supervisor.alive(self._now)
        supervisor.stopping()

    def turn(self) -> None:
        """Take in what has come, and send what follows from it.  Never waits."""
        self._now = self._clock()
        self._receive_messages()
        self._receive_results()
        self._receive_logs()
        self._run_timers()
        self._start_io()
        self._send_desired()
        self._outbox.send_due(self._scheduler, self._now)

    def due(self) -> float:
        """When the next `turn` has something to do, if nothing comes before."""
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
        """Release everything.  Whatever is under way is left as it is, to be found again."""
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
            self._peer = peer
            if not self._outbox.rejects(peer, message, self._scheduler):
                self._dispatch(sender, message)

    def _receive_results(self) -> None:
        lost = self._outbox.check_journal()
        for event in (*lost, *self._store_client.answers(), *self._resolvers.answers()):
            self._apply(event)
        for peer, piece in self._store_client.pieces():
            self._server.send(peer, piece)

    def _receive_logs(self) -> None:
        for sender, piece, frame in self._server.pieces():
            self._receive_piece(sender, piece, frame)
        self._spools.digest()
        for worker, wanted in self._spools.wanted(self._now):
            route = self._routes.get(worker)
            if route is not None and not self._server.send(route, wanted):
                self._spools.unsent(wanted)

    def _run_timers(self) -> None:
        if self._now >= self._scheduler.next_due():
            self._apply(events.Tick())
        if self._server.refresh_keys(self._now):
            self._routes.clear()
            self._outbox.clear()
        self._telemetry.measure(self._scheduler, self._now)
        if self._now >= self._sweep_due:
            self._sweep_due = self._now + SWEEP_EVERY
            if not self._scheduler.state.requesters:
                gc.collect()
            self._spools.sweep(self._now)
            self._spools.sweep_files()
            self._outbox.subscriptions.sweep(self._scheduler.state.requests)
            known = self._scheduler.state.workers
            self._routes = {name: peer for name, peer in self._routes.items() if name in known}

    def _start_io(self) -> None:
        self._telemetry.journal.flush()
        if self._queries:
            self._store_client.query(self._queries.copy())
            self._queries.clear()

    def _send_desired(self) -> None:
        for name in self._changed_workers:
            desired = self._scheduler.desired(name)
            route = self._routes.get(name)
            if desired is None or route is None:
                continue
            if self._spools.lacking:
                # A worker may drop a log once its attempt is settled, so first let it be whole.
                settled = tuple(
                    attempt
                    for attempt in desired.settled
                    if not self._spools.incomplete(attempt.key, attempt.fence, self._now)
                )
                desired = msgspec.structs.replace(desired, settled=settled)
            self._server.send(route, desired)
        self._changed_workers.clear()

    # -- messages ------------------------------------------------------------------------------

    def _dispatch(self, sender: str, message: FromPeer) -> None:
        match message:
            case Report():
                self._apply(message)
                worker = self._scheduler.state.workers.get(message.name)
                if worker is not None and worker.instance == message.instance:
                    self._routes[message.name] = self._peer
            case BuildOrder() | BuildGraph():
                self._outbox.subscriptions.subscribe(
                    message.request, self._peer, self._now, owner=sender
                )
                self._apply(message)
            case Poll():
                self._outbox.subscriptions.subscribe(
                    message.request, self._peer, self._now, message.seen, owner=sender
                )
                self._apply(message)
            case Leave():
                self._outbox.subscriptions.unsubscribe(message.request, self._peer)
                if not self._outbox.subscriptions.has_subscribers(message.request, self._now):
                    self._apply(message)
            case Command():
                self._apply(message)
            case Query():
                self._outbox.answer(self._peer, message, self._scheduler, self._now)
            case LogPiece():
                self._spools.arrived(message.key, message.fence)
                came = Published(message.key, message.fence, message.offset, message.data)
                self._receive_piece(sender, came, came.frame())
            case LogRead():
                key, fence = message.key, message.fence
                piece = self._spools.read(key, fence, message.offset, message.length)
                if piece is None:
                    self._store_client.read_log(sender, self._peer, message)
                else:
                    self._server.send(self._peer, piece)

    def _apply(self, event: events.Event) -> None:
        handlers = self._handlers
        for effect in self._scheduler.handle(event, self._now):
            handlers[type(effect)](effect)

    def _receive_piece(self, sender: str, piece: Published, frame: bytes | zmq.Frame) -> None:
        """A piece of a log comes; ``frame`` is all of it."""
        if sender and sender != self._spools.worker(piece.key, piece.fence):
            return  # it is not this worker's log
        offset, fresh = self._spools.append(*piece)
        if fresh:
            self._telemetry.received_log(len(fresh))
            if len(fresh) < len(piece.data):
                frame = Published(piece.key, piece.fence, offset, fresh).frame()
            self._server.publish(frame)

    # -- effects -------------------------------------------------------------------------------

    def _refuse(self, effect: events.Refuse) -> None:
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
        self._telemetry.ended(effect, self._scheduler.state.tasks)


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
    """A broker that listens at ``addresses``; ``state`` is for what it keeps.

    With ``keys_dir`` only those admitted there are heard.  ``resolver`` is the command that
    resolves orders; with it, requests go on after a restart.  What is noted and counted goes to
    ``note`` and ``metrics``.  AddressError, KeyProblem or OSError if that cannot be done.
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
            # Also if no request was left: workers may not have heard that they are to stop.
            # Those of an embedded broker end with it.
            recovering=lasting and not journal.first,
            now=time.monotonic(),
        )

    parts = Parts(
        clock=time.monotonic,
        wake=wake,
        server=server,
        spools=Spools(state / "logs"),
        telemetry=Telemetry(journal, event_log, metrics),
        store_client=StoreClient(open_store, wake),
        resolvers=ResolverPool(resolver, wake),
        new_core=new_core,
    )
    return Broker(parts, lasting=lasting)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = daemon.parser("fabric-broker", __doc__ or "", config.BROKER_FILE)
    top.add_argument(
        "--state", type=Path, default="state", help="embedded: where it keeps journal and logs"
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
        if options.check_config:
            print(config.shown(settings))
            return 0
        more_descriptors()
        broker = _broker(settings, options.config, options.directory)
    except (FabricError, OSError) as error:
        EventLog("fabric-broker")(str(error))
        return error.exit_code if isinstance(error, FabricError) else 4
    serve(broker, forget_logs=options.parent is not None)
    return 0


def serve(broker: Broker, *, forget_logs: bool = False) -> None:
    """Have a process run this broker until it is told to end, and close it."""
    # What is made while serving lives long, and hardly in circles.  To look for garbage in more of
    # it than came last takes long, so that is left to `Broker`, for when there is nothing to do.
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
    def store() -> Store:
        from fabric.trove.configured import open_store  # slow, and only the store_client needs it

        return open_store(settings, settings.state_dir / "scratch")

    if directory is not None:
        return assemble(sockets.in_directory(directory), settings.state_dir, store)
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
        EventLog("fabric-broker", chatty=True),
        Metrics(settings.metrics) if settings.metrics else None,
    )


def program() -> NoReturn:
    """The program: `main`."""
    daemon.run(main)


if __name__ == "__main__":
    program()
