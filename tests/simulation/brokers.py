"""A simulated broker: the real core and spools, and a thin shell as `fabric.broker` is one.

What it has written to its disk it has again after a crash.  What it tells initiators waits until
all it has written before is on the disk, so nobody hears of what a crash could take back.  While
the disk is full it promises nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from scenarios import Scenario

from fabric.logs import Spools
from fabric.scheduling import events
from fabric.scheduling.core import Scheduler
from fabric.scheduling.watchers import Watchers
from fabric.wire.messages import (
    Command,
    FromPeer,
    Leave,
    LogPiece,
    LogRead,
    Message,
    Order,
    Poll,
    Published,
    Query,
    Refused,
    Report,
    Submit,
    Update,
)

if TYPE_CHECKING:
    from simulator import Simulation

#: Orders resolved at once.
RESOLVERS = 2


class Disk:
    """What outlives a run of the broker."""

    def __init__(self) -> None:
        self.runs = 0
        self.full_until = 0.0
        self.open: dict[str, Order | Submit] = {}  # requests that began and are not over
        self.closed: dict[str, events.Remembered] = {}  # requests that are over
        self.drained: set[str] = set()


class Broker:
    """One run of the broker."""

    def __init__(self, world: Simulation, scenario: Scenario, disk: Disk, directory: Path) -> None:
        self.world = world
        self.disk = disk
        self.alive = True
        self.started = world.now
        self.reported: set[tuple[str, int]] = set()  # attempts that workers said they have
        disk.runs += 1
        self.run = disk.runs
        self.scheduler = Scheduler(
            scenario.limits,
            epoch=disk.runs,
            secret=b"what outlives a run",
            drained=frozenset(disk.drained),
            recovering=disk.runs > 1,
            now=world.now,
        )
        self.spools = Spools(directory)
        self.watchers = Watchers()
        self.routes: dict[str, str] = {}  # worker's name -> node
        self.heard: dict[str, float] = {}  # node -> when
        self._written = world.now  # when all that was written will be on the disk
        self._owed: list[tuple[str, Callable[[], None]]] = []  # what could not: about what, and how
        self._opening: dict[str, None] = {}  # requests whose beginning is not on the disk
        self._fails = 0  # how often it could not be written
        self._orders: list[Order] = []  # waiting to be resolved
        self._resolving: dict[str, None] = {}
        for event in (*disk.closed.values(), *disk.open.values()):
            self.apply(event, "")
        self._tick()

    def close(self) -> None:
        """It crashes."""
        self.alive = False
        self.spools.close()

    # -- what comes ----------------------------------------------------------------------------

    def hear(self, source: str, message: FromPeer) -> None:
        """A message came."""
        if not self.alive or self._refuses(source, message):
            return
        match message:
            case Report():
                self.reported |= {(each.key, each.fence) for each in message.running}
                self.routes[message.name] = source
                self.apply(message, source)
                worker = self.scheduler.workers.get(message.name)
                if worker is not None and worker.heard == self.world.now:
                    self.heard[source] = self.world.now  # not an old one come late
            case Order() | Submit() | Poll():
                seen = message.seen if isinstance(message, Poll) else 0
                self.watchers.watch(message.request, source.encode(), self.world.now, seen)
                self.apply(message, source)
            case Leave():
                self.watchers.unwatch(message.request, source.encode())
                self.apply(message, source)
            case Query():
                self.told(source, self.scheduler.answer(message, self.world.now))
            case LogPiece():
                self.spools.arrived(message.key, message.fence)
                self.log(message.key, message.fence, message.offset, message.data)
            case LogRead():
                key, fence = message.key, message.fence
                piece = self.spools.read(key, fence, message.offset, message.length)
                self.send(source, piece or Refused(key, "no-log", "no log of it is kept here"))
            case _:
                self.apply(message, source)

    def apply(self, event: events.Event, source: str) -> None:
        """Let the core handle an event, and do what follows."""
        if not self.alive:
            return
        for effect in self.scheduler.handle(event, self.world.now):
            self._carry_out(effect, source)
        self.world.judge.after(self)

    def _carry_out(self, effect: events.Effect, source: str) -> None:
        world = self.world
        match effect:
            case events.Ask() | events.Inspect():
                world.at(world.store_delay(), partial(self._look_up, effect))
            case events.Resolve():
                self._orders.append(effect.order)
                self._resolve_next()
            case events.Abandon():
                self._orders = [each for each in self._orders if each.request != effect.request]
                if self._resolving.pop(effect.request, "absent") is None:
                    self._resolve_next()
            case events.Desire():
                self._desire(effect.worker)
            case events.Changed():
                self.watchers.news(effect.request, last=effect.over)
                world.at(0.0, self.tell_initiators)
            case events.Refuse():
                self.told(source, Refused(effect.about, effect.code, effect.reason))
                self.watchers.unwatch(effect.about, source.encode())
            case events.Tell():
                self.told(source, effect.answer)
            case events.Opened():
                if self.disk.open.get(effect.request) != effect.intent:
                    self._opening[effect.request] = None
                    self._write(effect.request, partial(self._open, effect.request, effect.intent))
            case events.Closed():
                last = self.scheduler.update(effect.request, 0, world.now)
                self._write(effect.request, partial(self._close, effect.request, last))
            case events.Drained():
                change = self.disk.drained.add if effect.on else self.disk.drained.discard
                self._write("", partial(change, effect.worker))
            case events.Began():
                self.spools.begin(effect.key, effect.fence, effect.worker, found=effect.found)
                world.judge.began(self, effect)
            case events.Ended():
                world.judge.ended(self, effect)
                outcome = effect.outcome
                size, sha = (outcome.log_size, outcome.log_sha256) if outcome else (-1, "")
                self.spools.end(effect.key, effect.fence, size, sha, world.now)

    # -- the disk, the store, the definitions --------------------------------------------------

    def _write(self, about: str, action: Callable[[], None]) -> None:
        self._written = max(self._written, self.world.now + self.world.rng.uniform(0.0, 0.3))
        put = partial(self._put, about, action)
        self.world.at(self._written - self.world.now, partial(self._if_alive, put))

    def _put(self, about: str, action: Callable[[], None]) -> None:
        """What was to be written comes to the disk."""
        if not self._owed and self.world.now >= self.disk.full_until:
            action()
            return
        self._owed.append((about, action))
        if len(self._owed) > 1:
            return
        self._fails += 1  # so that what waits to be told is not
        for request in list(self._opening):
            del self._opening[request]
            self.apply(events.Unwritten(request), "")

    def _make_up(self) -> None:
        """Write what could not be written, if there is room."""
        if self._owed and self.world.now >= self.disk.full_until:
            for _, action in self._owed:
                action()
            self._owed.clear()

    def _refuses(self, source: str, message: FromPeer) -> bool:
        """Whether it is asked for a promise that it cannot keep now."""
        if not self._owed:
            return False
        match message:
            case Order() | Submit() if message.request not in self.scheduler.requests:
                about = message.request
            case Command():
                about = message.id
            case _:
                return False
        self.send(source, Refused(about, "not-now", "the disk is full"))
        return True

    def _if_alive(self, action: Callable[[], None]) -> None:
        if self.alive:
            action()

    def _open(self, request: str, intent: Order | Submit) -> None:
        self._opening.pop(request, None)
        self.disk.open[request] = intent

    def _close(self, request: str, outcome: Update | None) -> None:
        intent = self.disk.open.pop(request, None)
        if outcome is not None and intent is not None:  # else it is forgotten
            self.disk.closed[request] = events.Remembered(outcome, intent.requester, 0.0)

    def _look_up(self, effect: events.Ask | events.Inspect) -> None:
        store, away = self.world.store, self.world.store_is_away
        if isinstance(effect, events.Ask):
            present = frozenset(key for key in effect.keys if key in store)
            answer: events.Event = events.Answered(effect.question, present)
            if away:
                answer = events.Unanswered(effect.question, "no route to host")
        else:
            gone = frozenset(key for key in effect.keys if not store.get(key))
            answer = events.Inspected(gone)
            if away:
                answer = events.Inspected(frozenset(), "no route to host")
            for key in answer.keys:
                store.pop(key, None)
        if self.alive:
            self.apply(answer, "")

    def _resolve_next(self) -> None:
        while self._orders and len(self._resolving) < RESOLVERS:
            order = self._orders.pop(0)
            self._resolving[order.request] = None
            self.world.at(self.world.rng.uniform(0.05, 3.0), partial(self._resolved, order))

    def _resolved(self, order: Order) -> None:
        if self.alive and self._resolving.pop(order.request, "absent") is None:
            submit = self.world.resolve(order)
            if submit is None:
                self.apply(events.Unresolved(order.request, "no such system"), "")
            else:
                self.apply(events.Resolved(order.request, submit), "")
            self._resolve_next()

    # -- what goes -----------------------------------------------------------------------------

    def send(self, node: str, message: Message) -> None:
        self.world.send(
            "broker", node, type(message).__name__, partial(self.world.to_node, node, message)
        )

    def told(self, node: str, message: Message) -> None:
        """Tell an initiator, once all that was written before is on the disk."""
        if self._owed or self._written <= self.world.now:
            self.send(node, message)
        else:
            say = partial(self._say, self._fails, node, message)
            self.world.at(self._written - self.world.now, say)

    def _say(self, fails: int, node: str, message: Message) -> None:
        if self.alive and fails == self._fails:
            self.send(node, message)

    def _tick(self) -> None:
        world = self.world
        if not self.alive:
            return
        if world.now >= self.scheduler.next_due():
            self.apply(events.Tick(), "")
        for worker, wanted in self.spools.wanted(world.now):
            if worker in self.routes:
                self.send(self.routes[worker], wanted)
        self._make_up()
        self.tell_initiators()
        world.at(0.25, self._tick)

    def _desire(self, worker: str) -> None:
        desired = self.scheduler.desired(worker)
        node = self.routes.get(worker)
        if desired is None or node is None:
            return
        settled = tuple(
            each
            for each in desired.settled
            if not self.spools.incomplete(each.key, each.fence, self.world.now)
        )
        self.send(node, msgspec.structs.replace(desired, settled=settled))

    def tell_initiators(self) -> None:
        if not self.alive:
            return
        for watcher in self.watchers.take(self.world.now):
            update = self.scheduler.update(watcher.request, watcher.seen, self.world.now)
            if update is None:
                self.watchers.unwatch(watcher.request, watcher.peer)
            elif update.state == "cancelled" and any(
                one == update.request for one, _ in self._owed
            ):
                pass  # a crash would take that back
            else:
                self.told(watcher.peer.decode(), update)

    def log(self, key: str, fence: int, offset: int, data: bytes) -> None:
        """A piece of log comes; what is new in it is published."""
        if not self.alive:
            return
        offset, fresh = self.spools.append(key, fence, offset, data)
        if fresh:
            piece = Published(key, fence, offset, fresh)
            for initiator in self.world.initiators:
                if not initiator.gone:
                    hear = partial(initiator.read, piece)
                    self.world.send("broker", initiator.node, "a line of log", hear)
