"""The broker: one thread, one poller, between workers and initiators and the core.

Messages become events of `fabric.scheduling.core`, its effects become messages.  Nothing is
decided here, and nothing here waits: the store is asked by `fabric.desk`, the journal is written
by its own thread, and a peer that does not read loses messages, which it will ask for again.
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
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from fabric.desk import Desk
from fabric.errors import FabricError
from fabric.journal import Journal
from fabric.logs import Spools
from fabric.process import die_with_parent
from fabric.scheduling import events
from fabric.scheduling.core import Scheduler
from fabric.scheduling.model import Limits
from fabric.scheduling.watchers import Watchers
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    FromPeer,
    Leave,
    LogHint,
    LogPiece,
    LogRead,
    Message,
    Poll,
    Refused,
    Report,
    Submit,
)

if TYPE_CHECKING:
    from fabric.trove.store import Store

#: Messages taken from one socket before the next has its turn.
JOBS_AT_ONCE = 200
LOGS_AT_ONCE = 100
#: Seconds between sweeps of old logs.
SWEEP_EVERY = 60.0
#: Peers remembered for having sent rubbish, so that each is noted once.
SCOLDED = 1000


class Broker:
    """One run of a broker.  ``directory`` is for its sockets, ``state`` for what it keeps."""

    def __init__(
        self,
        directory: Path,
        state: Path,
        open_store: Callable[[], Store],
        limits: Limits | None = None,
    ) -> None:
        """Binds the sockets.  AddressError or OSError if that cannot be done."""
        self._context = zmq.Context()
        self._jobs = sockets.router(self._context)
        self._logs_in = sockets.subscriber(self._context, "")
        self._logs = sockets.republisher(self._context)
        sockets.bind(self._jobs, sockets.ipc(directory, "jobs"))
        sockets.bind(self._logs_in, sockets.ipc(directory, "logs-in"))
        sockets.bind(self._logs, sockets.ipc(directory, "logs"))
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        for source in (self._jobs, self._logs_in, self._logs, self._wakeup):
            self._poller.register(source, zmq.POLLIN)
        self._stopping = False
        self._messages: sockets.Codec[FromPeer] = sockets.Codec(FromPeer)
        self._hints: sockets.Codec[LogHint] = sockets.Codec(LogHint)
        self._spools = Spools(state / "logs")
        self._journal = Journal(state / "journal.sqlite", note)
        self._desk = Desk(open_store, self._wake)
        self._now = time.monotonic()
        self._scheduler = Scheduler(
            limits,
            broker=uuid.uuid4().hex,
            epoch=self._journal.epoch,
            durations=self._journal.durations,
            now=self._now,
        )
        self._sweep_due = self._now + 1.0  # let the start be quick
        self._peer = b""  # who sent the message at hand,
        self._frame = b""  # and how it came
        self._routes: dict[str, bytes] = {}  # worker -> peer
        self._desires: dict[str, None] = {}  # workers to be told
        self._asks: list[events.Ask] = []  # to be put to the desk
        self._watchers = Watchers()
        self._scolded: dict[bytes, None] = {}
        self._carry_out: dict[type, Callable[[Any], None]] = {
            events.Ask: self._ask,
            events.Desire: self._desire,
            events.Changed: self._changed,
            events.Refuse: self._refuse,
            events.Opened: self._opened,
            events.Closed: self._closed,
            events.Began: self._began,
            events.Ended: self._ended,
            events.Learned: self._learned,
        }

    def run(self) -> None:
        """Serve until told to stop."""
        while not self._stopping:
            self._wait()
            self._hear_peers()
            self._hear_store()
            self._hear_logs()
            self._pass_time()
            self._tell_helpers()
            self._tell_workers()
            self._tell_initiators()

    def stop(self) -> None:
        """End `run` soon.  Any thread, and a signal handler, may call this."""
        self._stopping = True
        self._wake()

    def close(self, *, forget_logs: bool = False) -> None:
        """Release everything.  Whatever is under way is left as it is, to be found again."""
        self._context.destroy(linger=0)
        self._desk.close()
        self._journal.close()
        self._spools.close(forget=forget_logs)
        os.close(self._wakeup)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # closed: there is nobody to wake
            os.eventfd_write(self._wakeup, 1)

    # -- one turn of the loop ------------------------------------------------------------------

    def _wait(self) -> None:
        due = min(self._scheduler.next_due(), self._watchers.next_due(), self._spools.next_due())
        left = max(0.0, due - time.monotonic())
        for source, _ in self._poller.poll(math.ceil(left * 1000)):
            if source == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wakeup)
        self._now = time.monotonic()

    def _hear_peers(self) -> None:
        for frames in sockets.drain(self._jobs, JOBS_AT_ONCE):
            self._peer, self._frame = frames[0], frames[-1]
            if len(frames) != 2:
                self._scold(f"{len(frames)} frames")
                continue
            try:
                message = self._messages.decode(self._frame)
            except sockets.Garbage as error:
                self._misunderstood(error)
            else:
                self._heard(message)

    def _hear_store(self) -> None:
        for answer in self._desk.answers():
            self._apply(answer)
        for peer, piece in self._desk.pieces():
            self._send(peer, piece)

    def _hear_logs(self) -> None:
        for _ in sockets.drain(self._logs, JOBS_AT_ONCE):
            pass  # who subscribes to what is ZeroMQ's business
        for frames in sockets.drain(self._logs_in, LOGS_AT_ONCE):
            try:
                key, encoded, data = frames
                hint = self._hints.decode(encoded)
                self._log(key.decode("ascii"), hint.fence, hint.offset, data)
            except ValueError:
                self._peer = b"logs"
                self._scold("no piece of a log")
        for worker, wanted in self._spools.wanted(self._now):
            route = self._routes.get(worker)
            if route is not None:
                self._send(route, wanted)

    def _pass_time(self) -> None:
        if self._now >= self._scheduler.next_due():
            self._apply(events.Tick())
        if self._now >= self._sweep_due:
            self._sweep_due = self._now + SWEEP_EVERY
            self._spools.sweep(self._now)
            self._spools.sweep_files()
            self._watchers.sweep(self._scheduler.requests)
            known = self._scheduler.workers
            self._routes = {name: peer for name, peer in self._routes.items() if name in known}

    def _tell_helpers(self) -> None:
        self._journal.flush()
        if self._asks:
            self._desk.ask(self._asks)
            self._asks = []

    def _tell_workers(self) -> None:
        for name in self._desires:
            desired = self._scheduler.desired(name)
            route = self._routes.get(name)
            if desired is None or route is None:
                continue
            # A worker may drop a log once its attempt is settled, so first let it be whole.
            settled = tuple(
                attempt
                for attempt in desired.settled
                if not self._spools.incomplete(attempt.key, attempt.fence, self._now)
            )
            if len(settled) < len(desired.settled):
                desired = msgspec.structs.replace(desired, settled=settled)
            self._send(route, desired)
        self._desires.clear()

    def _tell_initiators(self) -> None:
        for watcher in self._watchers.take(self._now):
            update = self._scheduler.update(watcher.request, watcher.seen, self._now)
            if update is None or not self._send(watcher.peer, update):
                self._watchers.unwatch(watcher.request, watcher.peer)

    # -- messages ------------------------------------------------------------------------------

    def _heard(self, message: FromPeer) -> None:
        match message:
            case Report():
                if message.protocol != PROTOCOL:
                    self._mismatch(message.name, message.protocol)
                    return
                self._apply(message)
                worker = self._scheduler.workers.get(message.name)
                if worker is not None and worker.instance == message.instance:
                    self._routes[message.name] = self._peer
            case Submit():
                if message.protocol != PROTOCOL:
                    self._mismatch(message.request, message.protocol)
                    return
                self._watchers.watch(message.request, self._peer)
                self._apply(message)
            case Poll():
                self._watchers.watch(message.request, self._peer, message.seen)
                self._apply(message)
            case Leave():
                self._watchers.unwatch(message.request, self._peer)
                self._apply(message)
            case LogPiece():
                self._spools.arrived(message.key, message.fence)
                self._log(message.key, message.fence, message.offset, message.data)
            case LogRead():
                key, fence = message.key, message.fence
                piece = self._spools.read(key, fence, message.offset, message.length)
                if piece is None:
                    self._desk.read_log(self._peer, message)
                else:
                    self._send(self._peer, piece)

    def _apply(self, event: events.Event) -> None:
        for effect in self._scheduler.handle(event, self._now):
            self._carry_out[type(effect)](effect)

    def _log(self, key: str, fence: int, offset: int, data: bytes) -> None:
        offset, fresh = self._spools.append(key, fence, offset, data)
        if fresh:
            hint = self._hints.encode(LogHint(fence, offset))
            sockets.send(self._logs, key.encode(), hint, fresh)

    def _send(self, peer: bytes, message: Message) -> bool:
        return sockets.send(self._jobs, peer, self._messages.encode(message))

    def _misunderstood(self, error: sockets.Garbage) -> None:
        greeting = sockets.greeting(self._frame)
        if greeting is None:
            self._scold(str(error))
        elif greeting[1] != PROTOCOL:
            self._mismatch(*greeting)
        else:
            reason = f"a message cannot be read: {error}"
            self._send(self._peer, Refused(greeting[0], "bad-request", reason))
            self._scold(reason)

    def _mismatch(self, about: str, protocol: int) -> None:
        reason = sockets.mismatch(protocol, us="the broker", them="this peer")
        self._send(self._peer, Refused(about, "protocol", reason))
        self._scold(reason)

    def _scold(self, why: str) -> None:
        """Note rubbish, once for each peer."""
        if self._peer not in self._scolded:
            self._scolded[self._peer] = None
            if len(self._scolded) > SCOLDED:
                del self._scolded[next(iter(self._scolded))]
            note(f"a message was dropped: {why}")

    # -- effects -------------------------------------------------------------------------------

    def _ask(self, effect: events.Ask) -> None:
        self._asks.append(effect)

    def _desire(self, effect: events.Desire) -> None:
        self._desires[effect.worker] = None

    def _changed(self, effect: events.Changed) -> None:
        self._watchers.news(effect.request, last=effect.over)

    def _refuse(self, effect: events.Refuse) -> None:
        self._send(self._peer, Refused(effect.about, effect.code, effect.reason))
        self._watchers.unwatch(effect.about, self._peer)

    def _opened(self, effect: events.Opened) -> None:
        self._journal.opened(effect.request, effect.title, self._frame)

    def _closed(self, effect: events.Closed) -> None:
        self._journal.closed(effect.request, effect.state)

    def _began(self, effect: events.Began) -> None:
        self._spools.begin(effect.key, effect.fence, effect.worker, found=effect.found)

    def _ended(self, effect: events.Ended) -> None:
        outcome = effect.outcome
        if outcome is None:
            self._spools.end(effect.key, effect.fence, -1, "", self._now)
            return
        self._spools.end(effect.key, effect.fence, outcome.log_size, outcome.log_sha256, self._now)
        self._journal.ended(effect)

    def _learned(self, effect: events.Learned) -> None:
        self._journal.learned(effect)


def note(text: str) -> None:
    """Say something to whoever keeps the broker's standard error."""
    print(f"fabric-broker: {text}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fabric-broker", description=(__doc__ or "").splitlines()[0])
    top.add_argument("--directory", type=Path, required=True, help="where to make its sockets")
    top.add_argument("--state", type=Path, required=True, help="where it keeps journal and logs")
    top.add_argument("--store", metavar="URL", help="the artifact store (default: as configured)")
    top.add_argument("--parent", type=int, metavar="PID", help="end when this process does")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a broker; returns its exit code."""
    options = parser().parse_args(argv)
    if options.parent:
        die_with_parent(options.parent)

    def open_store() -> Store:
        from fabric.trove.store import Store  # slow, and only the desk needs it

        url = options.store
        if url is None:
            from fabric.config import load_settings

            url = load_settings().store_url
        return Store(url, options.state / "scratch")

    try:
        broker = Broker(options.directory, options.state, open_store)
    except (FabricError, OSError) as error:
        note(str(error))
        return error.exit_code if isinstance(error, FabricError) else 4
    # What is made while serving lives long and hardly in circles: do not look for garbage often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: broker.stop())
    try:
        broker.run()
    finally:
        broker.close(forget_logs=options.parent is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
