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

from judge import Violation

from fabric.broker import Broker, Parts
from fabric.journal import Journal, Storage
from fabric.logs import Spools
from fabric.notes import Notes
from fabric.record import Record
from fabric.scheduling import events
from fabric.scheduling.core import Scheduler
from fabric.scribe import RETRY
from fabric.wire.listener import Heard
from fabric.wire.messages import (
    Code,
    FromPeer,
    LogPiece,
    LogRead,
    Message,
    Order,
    Published,
    Refused,
    Report,
)

if TYPE_CHECKING:
    from simulator import Simulation

#: Orders resolved at once.
RESOLVERS = 2
#: Seconds since 1970 at which the world's clock would stand at zero.
EPOCH = 1.6e9
#: Turns of the broker's loop at one moment: more of them, and it spins.
SPINS = 50


class Disk:
    """What outlives a run of the broker: the journal's file, and the spools' folder."""

    def __init__(self, world: Simulation, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.runs = 0
        self.full_until = 0.0
        self._file = _Connection(lambda: self.full, ":memory:", isolation_level=None)

    @property
    def full(self) -> bool:
        return self.world.now < self.full_until

    def storage(self) -> Storage:
        """For one run's journal."""
        return Storage(
            clock=lambda: EPOCH + self.world.now,
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
    """Cannot write while the disk is full, and outlives who opened it."""

    def __init__(self, full: Callable[[], bool], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full = full

    def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
        if statement.startswith("COMMIT") and self._full():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(statement, *args)

    def close(self) -> None:
        pass

    def really_close(self) -> None:
        super().close()


class Run:
    """One run of the broker, until it is stopped or killed."""

    def __init__(self, world: Simulation, disk: Disk) -> None:
        self.world = world
        self.alive = True
        self.started = world.now
        self.heard: dict[str, float] = {}  # node -> when its report counted
        self._next = math.inf  # when a turn is planned
        self._turned, self._spins = -1.0, 0  # when the last turn was, and how many then
        self._writing = False
        disk.runs += 1
        self.run = disk.runs
        self.reported: set[tuple[str, int]] = set()  # attempts that workers said they have
        self._journal = journal = Journal(
            disk.directory / "journal.sqlite", self._warned, self.wake, storage=disk.storage()
        )
        self._spools = Spools(disk.directory / "logs")
        self.transport = Transport(self)
        simulated: dict[str, Any] = {
            "wake": self,
            "listener": self.transport,
            "desk": Desk(self),
            "resolvers": Resolvers(self),
        }
        self._broker = Broker(
            Parts(
                clock=lambda: world.now,
                spools=self._spools,
                record=Record(journal, Notes("simulated", environ={}), None),
                **simulated,
                new_core=self._new_core,
            ),
            lasting=True,
        )
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
            now=self.world.now,
        )
        return self.scheduler

    def stop(self) -> None:
        """It is asked to end, and does so in order."""
        self.alive = False
        self._broker.close()

    def kill(self) -> None:
        """It ends at once."""
        self.alive = False
        self._spools.drop()

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
        if not (self._writing or self._journal.scribe.idle):
            self._writing = True
            self.later(self.world.rng.uniform(0.0, 0.3), self._write)
        if (due := self._broker.due()) < math.inf:
            self._plan(now + math.ceil(max(0.0, due - now) * 1000) / 1000)

    def _write(self) -> None:
        self._writing = False
        self._journal.scribe.step()
        if self._journal.scribe.failure:
            self._writing = True
            self.later(RETRY, self._write)

    def _warned(self, text: str) -> None:
        self.world.tell(f"broker: {text}")


class _Judged(Scheduler):
    """The core, looked at after every event."""

    def __init__(self, run: Run, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = run

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        effects = super().handle(event, now)
        run = self._run
        if isinstance(event, Report):
            run.reported |= {(each.key, each.fence) for each in event.running}
            worker = self.workers.get(event.name)
            if worker is not None and worker.instance == event.instance and worker.heard == now:
                run.heard[event.instance] = now  # not an old one come late
        for effect in effects:
            if isinstance(effect, events.Began):
                run.world.judge.began(run, effect)
            elif isinstance(effect, events.Ended):
                run.world.judge.ended(run, effect)
        run.world.judge.after(run)
        return effects


class Transport:
    """The broker's sockets: `fabric.wire.listener.Listener`."""

    due = math.inf

    def __init__(self, run: Run) -> None:
        self._run = run
        self._heard: deque[Heard] = deque()
        self._pieces: deque[tuple[str, Published, bytes]] = deque()

    def hear(self, node: str, message: FromPeer) -> None:
        """A message came."""
        self._heard.append(Heard(node.encode(), node.partition("/")[0], message))
        self._run.wake()

    def read(self, node: str, piece: Published) -> None:
        """A published piece of a log came."""
        self._pieces.append((node.partition("/")[0], piece, piece.frame()))
        self._run.wake()

    def answer_the_door(self, now: float) -> None:
        pass

    def look(self, now: float) -> bool:  # noqa: ARG002 - as the real
        return False

    def heard(self) -> Iterator[Heard]:
        while self._heard:
            yield self._heard.popleft()

    def pieces(self) -> Iterator[tuple[str, Published, bytes]]:
        while self._pieces:
            yield self._pieces.popleft()

    def send(self, peer: bytes, message: Message) -> bool:
        world, node = self._run.world, peer.decode()
        arrive = partial(world.to_node, node, message)
        world.send("broker", node, type(message).__name__, arrive)
        return True

    def refuse(self, peer: bytes, about: str, code: Code, reason: str) -> None:
        self.send(peer, Refused(about, code, reason))

    def publish(self, frame: bytes) -> None:
        world = self._run.world
        piece = Published.of(memoryview(frame))
        for initiator in world.initiators:
            if not initiator.gone:
                read = partial(initiator.read, piece)
                world.send("broker", initiator.node, "a line of log", read)

    def close(self) -> None:
        pass


class Desk:
    """Asks the store: `fabric.desk.Desk`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._world = run.world
        self._answers: deque[events.Event] = deque()
        self._pieces: deque[tuple[bytes, LogPiece | Refused]] = deque()

    def ask(self, questions: list[events.Ask]) -> None:
        for question in questions:
            self._run.later(self._world.store_delay(), partial(self._look_up, question))

    def read_log(self, owner: str, peer: bytes, wanted: LogRead) -> None:  # noqa: ARG002
        self._run.later(self._world.store_delay(), partial(self._read, peer, wanted))

    def inspect(self, keys: tuple[str, ...]) -> None:
        self._run.later(self._world.store_delay(), partial(self._inspect, keys))

    def answers(self) -> Iterator[events.Event]:
        while self._answers:
            yield self._answers.popleft()

    def pieces(self) -> Iterator[tuple[bytes, LogPiece | Refused]]:
        while self._pieces:
            yield self._pieces.popleft()

    def close(self) -> None:
        pass

    def _look_up(self, ask: events.Ask) -> None:
        if self._world.store_is_away:
            self._answer(events.Unanswered(ask.question, "no route to host"))
        else:
            present = frozenset(key for key in ask.keys if key in self._world.store)
            self._answer(events.Answered(ask.question, present))

    def _inspect(self, keys: tuple[str, ...]) -> None:
        if self._world.store_is_away:
            self._answer(events.Inspected(frozenset(), "no route to host"))
            return
        gone = frozenset(key for key in keys if not self._world.store.get(key))
        for key in gone:
            self._world.store.pop(key, None)
        self._answer(events.Inspected(gone))

    def _read(self, peer: bytes, wanted: LogRead) -> None:
        self._pieces.append((peer, Refused(wanted.key, "no-log", "no log of it is kept here")))
        self._run.wake()

    def _answer(self, answer: events.Event) -> None:
        self._answers.append(answer)
        self._run.wake()


class Resolvers:
    """Resolves orders: `fabric.resolving.Resolvers`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: dict[str, Order] = {}
        self._running: dict[str, Order] = {}
        self._answers: deque[events.Event] = deque()

    def resolve(self, order: Order, host_tools: str = "") -> None:  # noqa: ARG002 - as the real
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

    def _resolved(self, order: Order) -> None:
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
