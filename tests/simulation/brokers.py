"""Runs of the real broker, in a simulated world.

`fabric.broker.Broker` itself is played, with its core, journal, spools and outbox.  Clock, network,
store, resolver and the thread that writes the journal are the world's: see `Parts`.
"""

from __future__ import annotations

import math
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from judge import Violation
from rare import Before

from fabric import bounds
from fabric.broker import Broker
from fabric.controller.journal import Journal
from fabric.controller.journal_file import Storage
from fabric.controller.journal_writer import RETRY
from fabric.controller.outbox import ReplyOutbox
from fabric.controller.parts import Parts
from fabric.controller.spools import NO_ROOM, REMOVED, Spools
from fabric.controller.store_client import Step, StoreClient
from fabric.controller.telemetry import Telemetry
from fabric.host.event_log import EventLog
from fabric.scheduling import events
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import (
    Answer,
    BuildOrder,
    Code,
    FromPeer,
    LogWanted,
    Message,
    Published,
    Query,
    Rejected,
    Report,
)
from fabric.wire.server import LARGEST, Received

if TYPE_CHECKING:
    from simulator import Simulation

#: Orders resolved at once.
RESOLVERS = 2
#: Seconds since 1970 at which the world's clock would stand at zero.
EPOCH = 1.6e9
#: Turns of the broker's loop at one moment: more of them, and it spins.
SPINS = 50


_encode = msgspec.msgpack.Encoder().encode


class Killed(BaseException):
    """The broker was killed in the middle of a write."""


class Disk:
    """What outlives a run of the broker: the journal's file, and the spools' folder."""

    def __init__(self, world: Simulation, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.runs = 0
        self.full_until = 0.0
        self.clock_is_off = 0.0  # seconds; the clock of that machine, which somebody sets
        self.killed_after = 0  # statements within transactions; 0: not at all
        self._file = _Connection(self, ":memory:", isolation_level=None)

    @property
    def full(self) -> bool:
        return self.world.now < self.full_until

    def storage(self) -> Storage:
        """For one run's journal."""
        return Storage(
            clock=lambda: EPOCH + self.world.now + self.clock_is_off,
            connect=lambda _: self._file,
            random=self.world.rng.randbytes,
            threaded=False,
        )

    def is_closed(self, request: str) -> bool:
        """Whether the journal says that a request is over."""
        row = self._file.execute("SELECT state FROM requests WHERE id = ?", (request,)).fetchone()
        return row is not None and row[0] != "open"

    def close(self) -> None:
        self._file.really_close()


class _Connection(sqlite3.Connection):
    """Outlives who opened it; it cannot write while the disk is full, and some die writing."""

    def __init__(self, disk: Disk, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._disk = disk

    def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
        if statement.startswith("COMMIT") and self._disk.full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        if not self._disk.killed_after or not self.in_transaction or statement == "ROLLBACK":
            return super().execute(statement, *args)
        self._disk.killed_after -= 1
        if self._disk.killed_after:
            return super().execute(statement, *args)
        if statement.startswith("COMMIT") and self._disk.world.rng.random() < 0.5:
            super().execute(statement, *args)  # it is written, and nobody hears of that
        raise Killed

    def close(self) -> None:
        pass

    def really_close(self) -> None:
        super().close()


class Run:
    """One run of the broker, until it is stopped or killed."""

    def __init__(self, world: Simulation, disk: Disk) -> None:
        self.world = world
        self.alive = False
        self.started = world.now
        self._ahead = world.some_clock()
        self.sent: dict[tuple[str, int], float] = {}  # node, sequence -> when it sent this report
        self.heard: dict[str, float] = {}  # node -> when it sent the last one that counted
        self.lost: dict[str, float] = {}  # worker -> when its lease ended last
        self.ousted: set[str] = set()  # nodes that another run of their worker has replaced
        self._next = math.inf  # when a turn is planned
        self._turned, self._spins = -1.0, 0  # when the last turn was, and how many then
        self._writing = False
        disk.runs += 1
        self.run = disk.runs
        self.reported: set[tuple[str, int]] = set()  # attempts that workers said they have
        self._journal = journal = Journal(
            disk.directory / "journal.sqlite", self._warned, self.wake, storage=disk.storage()
        )
        scenario = world.scenario
        self._spools = Spools(disk.directory / "logs", scenario.log_memory, scenario.log_disk)
        self.transport = Transport(self)
        self.store_client = StoreClient(world.warehouse.open, self.wake, _Executor(self))
        simulated: dict[str, Any] = {
            "wake": self,
            "server": self.transport,
            "store_client": self.store_client,
            "resolvers": Resolvers(self),
        }
        self._broker = Broker(
            Parts(
                clock=self.clock,
                spools=self._spools,
                telemetry=Telemetry(journal, EventLog("simulated", environ={}), None),
                **simulated,
                new_core=self._new_core,
            ),
            lasting=True,
        )
        self.alive = True
        self.wake()

    def _new_core(self) -> Scheduler:
        journal = self._journal
        self.scheduler: Scheduler = _Judged(
            self,
            self.world.scenario.limits,
            epoch=journal.epoch,
            secret=journal.secret,
            durations=journal.durations,
            drained=journal.drained_workers,
            recovering=not journal.first,
            now=self.clock(),
        )
        return self.scheduler

    def clock(self) -> float:
        """Monotonic seconds on its machine."""
        return self.world.now + self._ahead

    def queues(self) -> dict[str, int]:
        """How much waits in the broker, for whom."""
        if not self.alive:
            return {}  # it is being made
        outbox, store_client = self._broker._outbox, self.store_client
        return {
            "initiators": len(outbox._waiting),
            "the core": len(store_client._answers),
            "who reads logs": len(store_client._pieces),
            "the store": store_client._queries.qsize() + store_client._inspections.qsize(),
        }

    def stop(self) -> None:
        """It is asked to end, and does so in order."""
        self.alive = False
        try:
            self._broker.close()
        except Killed:
            self.world.rare("the broker is killed while it writes")
            self._spools.drop()

    def kill(self) -> None:
        """It ends at once."""
        self.alive = False
        self._spools.drop()

    def answer(self, query: Query) -> Answer:
        """The answer to a query, without a message."""
        history = self._broker._outbox._history
        outbox = ReplyOutbox(self._journal, lambda *_: True, history)
        outbox.answer(b"", query, self.scheduler, self.clock())
        [(_, _, answer)] = outbox._waiting
        assert isinstance(answer, Answer)
        return answer

    def removed_log(self, key: str) -> bool:
        """Whether a log of a step had to make room for others."""
        spools = self._spools._spools.values()
        return any(each.key == key and each.broken in (NO_ROOM, REMOVED) for each in spools)

    # -- as a `Wakeup` ---------------------------------------------------------------------------

    def __call__(self) -> None:
        self.wake()

    def close(self) -> None:
        pass

    def wake(self) -> None:
        """Have a turn soon."""
        self._plan(self.world.now)

    # -- the loop ------------------------------------------------------------------------------

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds, if this run has not ended then."""
        self.world.at_node("broker", delay, partial(self._if_alive, action))

    def _if_alive(self, action: Callable[[], None]) -> None:
        if self.alive:
            action()

    def _plan(self, due: float) -> None:
        if due < self._next:
            self._next = due
            self.later(due - self.world.now, self._turn)

    def _turn(self) -> None:
        now = self.world.now
        if self._next > now:
            return  # an earlier turn has done it
        self._next = math.inf
        self._spins = self._spins + 1 if now == self._turned else 0
        self._turned = now
        if self._spins > SPINS:
            raise Violation("the broker's loop spins")
        self._broker.turn()
        if not (self._writing or self._journal.writer.idle):
            self._writing = True
            self.later(self.world.rng.uniform(0.0, 0.3), self._write)
        if (due := self._broker.due()) < math.inf:
            self._plan(now + math.ceil(max(0.0, due - self.clock()) * 1000) / 1000)

    def _write(self) -> None:
        self._writing = False
        try:
            self._journal.writer.step()
        except Killed:
            self.world.lose_broker("killed while it writes")
            return
        if self._journal.writer.error:
            self._writing = True
            self.later(RETRY, self._write)

    def _warned(self, text: str) -> None:
        self.world.tell(f"broker: {text}")
        if "set aside" in text:
            raise Violation(text)


class _Judged(Scheduler):
    """The core, looked at after every event."""

    def __init__(self, run: Run, *args: Any, **kwargs: Any) -> None:
        self._run = run
        self._handled = run.clock()
        super().__init__(*args, **kwargs)

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        run = self._run
        before = Before(self, event, now - self._handled)
        known = set(self.state.workers)
        self._handled = now
        effects = super().handle(event, now)
        if isinstance(event, Report):
            run.reported |= {(each.key, each.fence) for each in event.running}
            worker = self.state.workers.get(event.name)
            if worker is not None and worker.instance == event.instance and worker.heard == now:
                run.heard[event.instance] = run.sent[event.instance, event.sequence]
                run.ousted.update(worker.former)
        run.lost |= dict.fromkeys(known - self.state.workers.keys(), run.world.now)
        for effect in effects:
            if isinstance(effect, events.Began):
                run.world.judge.began(run, effect)
            elif isinstance(effect, events.Ended):
                run.world.judge.ended(run, effect)
            elif isinstance(effect, events.Closed):
                run.world.over[effect.request] = run.world.now
        for name in before.newly_reserved(self):
            run.world.slot_kept(name)
        for what in before.rare(self, event, effects):
            run.world.rare(what)
        for (state, cause), arrow in self.state.arrows.items():
            if arrow.times:
                run.world.rare(f"{state} -- {cause.name}")
        run.world.judge.after(run)
        if run.world.viewer is not None and run.alive:
            run.world.viewer.look(run)
        return effects


class Transport:
    """The broker's sockets: `fabric.wire.server.Server`."""

    due = math.inf

    def __init__(self, run: Run) -> None:
        self._run = run
        self._heard: deque[Received] = deque()
        self._pieces: deque[tuple[str, Published, bytes]] = deque()

    def hear(self, node: str, message: FromPeer, sent: float) -> None:
        """A message came that was sent at this time."""
        if isinstance(message, Report):
            self._run.sent[message.instance, message.sequence] = sent
        frame = _encode(message)
        if len(frame) > LARGEST.get(type(message), bounds.FRAME):
            raise Violation(f"{type(message).__name__} of {node} has {len(frame):,} bytes")
        self._heard.append(Received(node.encode(), node.partition("/")[0], message))
        self._run.wake()

    def read(self, node: str, piece: Published) -> None:
        """A published piece of a log came."""
        self._pieces.append((node.partition("/")[0], piece, piece.frame()))
        self._run.wake()

    def authenticate(self, now: float) -> None:
        pass

    def refresh_keys(self, now: float) -> bool:  # noqa: ARG002 - as the real
        return False

    def receive(self) -> Iterator[Received]:
        while self._heard:
            yield self._heard.popleft()

    def pieces(self) -> Iterator[tuple[str, Published, bytes]]:
        while self._pieces:
            yield self._pieces.popleft()

    def send(self, peer: bytes, message: Message) -> bool:
        world, node = self._run.world, peer.decode()
        frame = _encode(message)
        if len(frame) > bounds.FRAME:
            raise Violation(f"{type(message).__name__} for {node} has {len(frame):,} bytes")
        told = getattr(message, "reason", "") + getattr(message, "error", "")
        if "internal error of the controller" in told:
            raise Violation(told)
        if isinstance(message, LogWanted):
            world.rare("a log has a gap")
        if isinstance(message, Rejected):
            world.rare(f"refused: {message.code}")
        arrive = partial(world.to_node, node, message)
        world.send("broker", node, type(message).__name__, arrive)
        return True

    def reject(self, peer: bytes, about: str, code: Code, reason: str) -> None:
        self.send(peer, Rejected(about, code, reason))

    def publish(self, frame: bytes) -> None:
        world = self._run.world
        piece = Published.of(memoryview(frame))
        for initiator in world.initiators:
            if not initiator.gone:
                read = partial(initiator.read, piece)
                world.send("broker", initiator.node, "a line of log", read)

    def close(self) -> None:
        pass


class _Executor:
    """Asks the store, one thing of each kind at a time, as `store_client.Threads` does."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._busy: set[str] = set()

    def start(self, kind: str, step: Step) -> None:
        if kind not in self._busy:
            self._busy.add(kind)
            self._go_on(kind, step)

    def _go_on(self, kind: str, step: Step) -> None:
        self._run.later(self._run.world.store_delay(), partial(self._do, kind, step))

    def _do(self, kind: str, step: Step) -> None:
        answers = self._run.store_client._answers
        before = len(answers)
        more = step(False)
        for answer in list(answers)[before:]:
            if isinstance(answer, events.StoreAnswered):
                self._run.world.judge.answered(self._run, answer)
        if more:
            if kind == "logs":
                self._run.world.rare("a log is looked for in the store")
            self._go_on(kind, step)
        else:
            self._busy.discard(kind)

    def close(self, timeout: float) -> None:
        pass


class Resolvers:
    """Resolves orders: `fabric.controller.resolver_pool.ResolverPool`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: dict[str, BuildOrder] = {}
        self._running: dict[str, BuildOrder] = {}
        self._answers: deque[events.Event] = deque()

    def resolve(self, order: BuildOrder, host_tools: str = "") -> None:  # noqa: ARG002 - as the real
        self._waiting[order.request] = order
        self._begin()

    def abandon(self, request: str) -> None:
        self._waiting.pop(request, None)
        self._running.pop(request, None)
        self._begin()

    def answers(self) -> Iterator[events.Event]:
        while self._answers:
            yield self._answers.popleft()

    def next_due(self) -> float:
        return math.inf

    def close(self) -> None:
        pass

    def _begin(self) -> None:
        while self._waiting and len(self._running) < RESOLVERS:
            request = next(iter(self._waiting))
            order = self._running[request] = self._waiting.pop(request)
            delay = self._run.world.rng.uniform(0.05, 3.0)
            self._run.later(delay, partial(self._resolved, order))

    def _resolved(self, order: BuildOrder) -> None:
        if self._running.get(order.request) is not order:
            return
        del self._running[order.request]
        submit = self._run.world.resolve(order)
        if submit is None:
            self._answers.append(events.Unresolved(order.request, "no such system"))
        else:
            self._answers.append(events.Resolved(order.request, submit))
        self._begin()
        self._run.wake()
