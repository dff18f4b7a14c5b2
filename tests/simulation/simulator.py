"""A fabric in virtual time, on a network that loses, delays, repeats, reorders and partitions.

The core, the worker's side (`WorkerAgent`), the initiator's side (`RequestMirror`) and the log
spools are the real ones; clock, network, store and builds are made up, all from one seed.  For
a while things go wrong; then they are left in peace, and everything has to come to its end.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from pathlib import Path

import msgspec
from peers import ARCH, Builder, Initiator
from simulated import Scenario

from fabric.logs import Spools
from fabric.scheduling import events
from fabric.scheduling.check import validate
from fabric.scheduling.core import Scheduler
from fabric.scheduling.states import PRESENT
from fabric.scheduling.why import story, why
from fabric.wire.messages import (
    PROTOCOL,
    LogHint,
    LogPiece,
    LogRead,
    Message,
    Offer,
    Poll,
    Refused,
    Report,
    Submit,
)


@dataclass
class Broker:
    """One run of the broker: the real core, and what its shell adds."""

    scheduler: Scheduler
    spools: Spools
    routes: dict[str, str] = field(default_factory=dict)  # worker's name -> node
    watchers: dict[str, dict[str, int]] = field(default_factory=dict)  # request -> node -> seen
    due: dict[str, float] = field(default_factory=dict)  # request -> when it may be told more


class Violation(AssertionError):
    """Something happened that must not."""


class Simulation:
    """One scenario, played."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.now = 1000.0
        self.peace = self.now + scenario.trouble
        self.directory = directory
        self.limits = scenario.limits
        self.stored: set[str] = set()
        self.store_out_until = 0.0
        self.cut_until: dict[str, float] = {}  # node -> when it can be reached again
        self.counts: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._events = 0
        self.epoch = 0
        self.offers = self._make_offers()
        self.names = {offer.key: offer.name for offer in self.offers}
        self.broker: Broker | None = None
        self.builders: dict[str, Builder] = {}
        self.initiators: list[Initiator] = []
        self.sick = {f"w{n}" for n in range(scenario.sick)} if scenario.workers > 1 else set()
        self._start_broker()
        for n in range(scenario.workers):
            self._start_builder(f"w{n}")
        for n in range(scenario.initiators):
            self.at(self.rng.uniform(0.0, scenario.trouble / 2), partial(self._submit, n))
        for rate, what in (
            (scenario.crashes, self._crash_builder),
            (scenario.restarts, self._crash_broker),
            (scenario.cuts, self._cut),
            (scenario.departures, self._depart),
            (scenario.outages, self._store_outage),
        ):
            for _ in range(round(rate * scenario.trouble * self.rng.uniform(0.5, 1.5))):
                self.at(self.rng.uniform(0.0, scenario.trouble), what)

    # -- time --------------------------------------------------------------------------------

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self._events += 1
        heappush(self._queue, (self.now + delay, self._events, action))

    def play(self) -> None:
        """Until all is over.  Violation if something is wrong, or it never ends."""
        deadline = self.peace + 400.0
        while self._queue and not (self.now > self.peace and self._all_over()):
            due, _, action = heappop(self._queue)
            self.now = max(self.now, due)
            if self.now > deadline:
                raise Violation(f"it never ends:\n{self.tell()}")
            action()
            self._check()
        self._verify()

    def _all_over(self) -> bool:
        return len(self.initiators) >= self.scenario.initiators and all(
            initiator.gone for initiator in self.initiators
        )

    def peaceful(self) -> bool:
        return self.now >= self.peace

    # -- the network -----------------------------------------------------------------------

    def send(self, source: str, target: str, message: Message, deliver: Callable[[], None]) -> None:
        """Deliver a message: maybe late, maybe twice, maybe never."""
        self.counts["messages"] += 1
        self.trace.update(f"{self.now:.6f} {source} {target} {type(message).__name__}\n".encode())
        times, slow = 1, 0.01
        if not self.peaceful():
            slow = self.scenario.delay
            if self.rng.random() < self.scenario.drop:
                self.counts["dropped"] += 1
                return
            if self.rng.random() < self.scenario.repeat:
                self.counts["repeated"] += 1
                times = 2
        for _ in range(times):
            self.at(self.rng.uniform(0.0005, slow), partial(self._arrive, source, target, deliver))

    def _arrive(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        if max(self.cut_until.get(source, 0.0), self.cut_until.get(target, 0.0)) > self.now:
            self.counts["cut off"] += 1
            return
        deliver()

    def to_broker(self, source: str, message: Message) -> None:
        self.send(source, "broker", message, partial(self._hear, source, message))

    # -- the broker's shell ------------------------------------------------------------------

    def _start_broker(self) -> None:
        self.epoch += 1
        scheduler = Scheduler(
            self.limits, broker=f"run {self.epoch}", epoch=self.epoch, now=self.now
        )
        self.broker = broker = Broker(scheduler, Spools(self.directory))
        self._tick(broker)

    def _tick(self, broker: Broker) -> None:
        if self.broker is not broker:
            return
        if self.now >= broker.scheduler.next_due():
            self.apply(broker, events.Tick(), "")
        for worker, wanted in broker.spools.wanted(self.now):
            if worker in broker.routes:
                node = broker.routes[worker]
                self.send("broker", node, wanted, partial(self._to_node, node, wanted))
        self.at(0.25, partial(self._tick, broker))

    def _hear(self, source: str, message: Message) -> None:
        broker = self.broker
        if broker is None:
            return
        match message:
            case Report():
                broker.routes[message.name] = source
                self.apply(broker, message, source)
            case Submit() | Poll():
                seen = message.seen if isinstance(message, Poll) else 0
                broker.watchers.setdefault(message.request, {})[source] = seen
                self.apply(broker, message, source)
                self._tell_soon(broker, message.request, 0.0)
            case LogPiece():
                broker.spools.arrived(message.key, message.fence)
                self.log(message.key, message.fence, message.offset, message.data)
            case LogRead():
                key, fence = message.key, message.fence
                piece = broker.spools.read(key, fence, message.offset, message.length)
                answer = piece or Refused(key, "no-log", "no log of it is kept here")
                self.send("broker", source, answer, partial(self._to_node, source, answer))
            case _:
                self.apply(broker, message, source)  # type: ignore[arg-type]

    def apply(self, broker: Broker, event: events.Event, source: str) -> None:
        if self.broker is not broker:
            return
        self.counts["events"] += 1
        for effect in broker.scheduler.handle(event, self.now):
            match effect:
                case events.Ask():
                    self.at(self.rng.uniform(0.001, 0.05), partial(self._ask, broker, effect))
                case events.Desire():
                    self._desire(broker, effect.worker)
                case events.Changed():
                    self._tell_soon(broker, effect.request, 0.0 if effect.over else 0.05)
                case events.Refuse():
                    refused = Refused(effect.about, effect.code, effect.reason)
                    self.send("broker", source, refused, partial(self._to_node, source, refused))
                case events.Began():
                    broker.spools.begin(effect.key, effect.fence, effect.worker)
                case events.Ended():
                    outcome = effect.outcome
                    size, sha = (outcome.log_size, outcome.log_sha256) if outcome else (-1, "")
                    broker.spools.end(effect.key, effect.fence, size, sha, self.now)
        validate(broker.scheduler, self.now)

    def _ask(self, broker: Broker, ask: events.Ask) -> None:
        if self.now < self.store_out_until:
            self.apply(broker, events.Unanswered(ask.question, "no route to host"), "")
        else:
            present = frozenset(key for key in ask.keys if key in self.stored)
            self.apply(broker, events.Answered(ask.question, present), "")

    def _desire(self, broker: Broker, worker: str) -> None:
        desired = broker.scheduler.desired(worker)
        node = broker.routes.get(worker)
        if desired is None or node is None:
            return
        settled = tuple(
            each
            for each in desired.settled
            if not broker.spools.incomplete(each.key, each.fence, self.now)
        )
        desired = msgspec.structs.replace(desired, settled=settled)
        self.send("broker", node, desired, partial(self._to_node, node, desired))

    def _tell_soon(self, broker: Broker, request: str, delay: float) -> None:
        due = broker.due.get(request)
        if due is None or due > self.now + delay:
            broker.due[request] = self.now + delay
            self.at(delay, partial(self._tell, broker, request))

    def _tell(self, broker: Broker, request: str) -> None:
        if self.broker is not broker or broker.due.get(request, self.now + 1) > self.now:
            return
        del broker.due[request]
        for node, seen in broker.watchers.get(request, {}).items():
            update = broker.scheduler.update(request, seen, self.now)
            if update is not None:
                self.send("broker", node, update, partial(self._to_node, node, update))

    def log(self, key: str, fence: int, offset: int, data: bytes) -> None:
        """A piece of log reaches the broker, which publishes what is new in it."""
        if self.broker is None:
            return
        offset, fresh = self.broker.spools.append(key, fence, offset, data)
        if fresh:
            hint = LogHint(fence, offset)
            for initiator in self.initiators:
                self.send(
                    "broker",
                    initiator.node,
                    LogPiece(key, fence, offset, fresh),
                    partial(initiator.hint, key, hint, fresh),
                )

    def _to_node(self, node: str, message: Message) -> None:
        for initiator in self.initiators:
            if initiator.node == node:
                initiator.hear(message)
        for builder in self.builders.values():
            if builder.node == node:
                builder.hear(message)

    # -- what there is -----------------------------------------------------------------------

    def _make_offers(self) -> tuple[Offer, ...]:
        offers: list[Offer] = []
        for n in range(self.scenario.steps):
            below = self.rng.sample(offers, min(len(offers), self.rng.choice((0, 1, 1, 2, 3))))
            name = f"s{n}"
            if self.rng.random() < self.scenario.bad_steps:
                name += "-bad"
            elif self.rng.random() < self.scenario.poison:
                name += "-poison"
            offers.append(
                Offer(
                    key=hashlib.sha256(f"{self.scenario.seed} {n}".encode()).hexdigest(),
                    name=name,
                    kind="chunk",
                    arch=ARCH,
                    job=msgspec.Raw(msgspec.msgpack.encode(name)),
                    depends=tuple(offer.key for offer in below),
                )
            )
        return tuple(offers)

    def _start_builder(self, name: str) -> None:
        runs = self.counts["builders"] = self.counts["builders"] + 1
        self.builders[name] = Builder(self, name, f"{name}/{runs}", self.scenario.slots)

    def _submit(self, number: int) -> None:
        top = self.offers[-4:]  # not too many, so that requests share much
        goals = self.rng.sample(top, min(len(top), self.rng.randint(1, 3)))
        submit = Submit(
            PROTOCOL,
            f"request {len(self.initiators)}",
            f"of {number}",
            self.offers,
            tuple(offer.key for offer in goals),
            self.scenario.keep_going,
        )
        self.initiators.append(Initiator(self, f"i{len(self.initiators)}", submit))

    # -- what goes wrong -----------------------------------------------------------------------

    def crash(self, builder: Builder) -> None:
        """A worker crashes.  It returns after a while, unless others are left."""
        if not builder.alive:
            return
        self.counts["crashes"] += 1
        builder.alive = False
        others = any(each.alive for each in self.builders.values() if each.name not in self.sick)
        if others and self.rng.random() < 0.3:
            return
        self.at(self.rng.uniform(0.1, 20.0), partial(self._start_builder, builder.name))

    def _crash_builder(self) -> None:
        self.crash(self.rng.choice(list(self.builders.values())))

    def _crash_broker(self) -> None:
        if self.broker is not None:
            self.counts["broker restarts"] += 1
            self.broker.spools.close()
            self.broker = None
            self.at(self.rng.uniform(0.1, 15.0), self._start_broker)

    def _cut(self) -> None:
        nodes = ["broker", *(b.node for b in self.builders.values())]
        nodes += [initiator.node for initiator in self.initiators]
        self.counts["partitions"] += 1
        self.cut_until[self.rng.choice(nodes)] = min(
            self.peace, self.now + self.rng.uniform(0.5, 30.0)
        )

    def _depart(self) -> None:
        """A user presses Ctrl-C, or an initiator is killed; somebody asks again later."""
        here = [initiator for initiator in self.initiators if not initiator.gone]
        if here:
            self.counts["departures"] += 1
            initiator = self.rng.choice(here)
            initiator.depart(politely=self.rng.random() < 0.5)
            self.at(self.rng.choice((0.0, 0.5, 5.0)), partial(self._submit, len(self.initiators)))

    def _store_outage(self) -> None:
        self.counts["store outages"] += 1
        self.store_out_until = min(self.peace, self.now + self.rng.uniform(0.1, 5.0))

    # -- what must hold ----------------------------------------------------------------------

    def _check(self) -> None:
        """No job runs twice at once, unless its worker could be thought lost."""
        if not self.scenario.gentle:
            return
        running = Counter(
            key for builder in self.builders.values() for key, _ in builder.agent.running
        )
        for key, count in running.items():
            if count > 1:
                raise Violation(f"{self.names[key]} runs {count} times at once\n{self.tell()}")

    def _verify(self) -> None:
        """Every request that was followed to its end has the end it should have."""
        for initiator in self.initiators:
            if initiator.departed:
                continue
            if not initiator.gone:
                raise Violation(f"{initiator.node} waits for ever\n{self.tell()}")
            initiator.verify()

    def tell(self) -> str:
        """Where everything stands."""
        lines = [f"{self.scenario}", f"at {self.now:.1f}, peace since {self.peace:.1f}"]
        if self.broker is None:
            return "\n".join([*lines, "there is no broker"])
        scheduler = self.broker.scheduler
        for request in scheduler.requests.values():
            lines.append(f"{request.id}: {request.state}, {request.open} open {request.message}")
        for task in scheduler.tasks.values():
            if task.state not in PRESENT:
                lines.append(str(why(scheduler, task.key, self.now)))
                lines.append(story(task))
        for builder in self.builders.values():
            lines.append(f"{builder.name} alive={builder.alive} runs {builder.agent.running}")
        for initiator in self.initiators:
            mirror = initiator.mirror
            lines.append(f"{initiator.node}: {mirror.state} complete={mirror.complete}")
        return "\n".join(lines)
