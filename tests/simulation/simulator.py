"""A farm in virtual time, on a network that loses, delays, repeats, reorders and partitions.

The core, the worker's side (`WorkerAgent`), the initiator's side (`RequestMirror`) and the log
spools are the real ones; clock, network, store and builds are made up, all from one seed.  For
a while things go wrong; then they are left in peace, and everything has to come to its end.
What must hold all the while is for the `Judge`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from brokers import Disk, Killed, Run
from judge import Judge, Violation
from network import Network
from peers import ARCH, Builder, Kind
from scenarios import Scenario
from users import Console, Initiator, Viewer
from warehouse import Warehouse

from fabric.errors import MachineFault
from fabric.jobs import Job, Staged
from fabric.scheduling.explain import history, why
from fabric.scheduling.states import PRESENT
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    FromPeer,
    Message,
    Published,
    Query,
    StepSpec,
)

#: Seconds of peace after which everything must be over.
PATIENCE = 900.0
#: What people and web pages ask.
QUESTIONS = (
    "requests", "workers", "why", "why", "logs", "pinned", "update", "graph", "attempts",
)  # fmt: skip
#: A feature that some workers have.
SPECIAL = "special"
REQUESTERS = ("alice", "bob", "carol")


class Simulation(Network):
    """One scenario, played."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        super().__init__(scenario)
        self.directory = directory
        self.outputs: dict[str, bytes] = {}  # key -> what its inputs give
        self.graph = self._make_graph()
        self.names = {key: offer.name for key, offer in self.graph.items()}
        self.warehouse = Warehouse(lambda: self.now < self._away_until, directory, self.outputs)
        self._away_until = self._slow_until = 0.0
        self._quiet = math.inf  # since when all is over
        self._stalled = 0.0  # seconds that the store takes for the next answer; 0: as usual
        self.judge = Judge(self)
        self.console = Console(self)
        self.viewer = Viewer(self) if scenario.watched else None
        self.builders: dict[str, Builder] = {}
        self.kinds = self._make_kinds()
        self.initiators: list[Initiator] = []
        self.wishes: dict[str, BuildOrder | BuildGraph] = {}  # all requests there ever were
        self.goals: dict[str, tuple[str, ...] | None] = {}  # request -> goals; None: unresolvable
        self.cancelled: set[str] = set()
        self.done: dict[str, set[int]] = {}  # key -> attempts that built it
        self.told: dict[str, set[str]] = {}  # request -> how it ended, as initiators heard
        self.over: dict[str, float] = {}  # request -> when it was over last
        self.detached: set[str] = set()  # accepted, so that nobody need watch any more
        self._expected = scenario.requests  # requests still to come
        self.disk = Disk(self, directory)
        self.broker: Run | None = Run(self, self.disk)
        for name in self.kinds:
            self._start_builder(name)
        for _ in range(scenario.requests):
            self.at(self.rng.uniform(0.0, scenario.trouble / 2), self._wish)
        self._plan_trouble()
        self.at(scenario.trouble, self._make_peace)

    def _plan_trouble(self) -> None:
        scenario = self.scenario
        for rate, what in (
            (scenario.crashes, self._crash_builder),
            (scenario.stops, self._stop_builder),
            (scenario.restarts, self._crash_broker),
            (scenario.restarts / 4, self._kill_writing_broker),
            (scenario.restarts / 4, self._set_clock),
            (scenario.cuts, self._cut_somebody),
            (scenario.departures, self._depart),
            (scenario.outages, self._store_goes_away),
            (scenario.slowness, self._store_slows_down),
            (scenario.damages, self._damage),
            (scenario.pauses, self._stop_process),
            (scenario.cancels, self._cancel),
            (scenario.drains, self._drain),
            (0.3, self._question),
        ):
            for _ in range(round(rate * scenario.trouble * self.rng.uniform(0.5, 1.5))):
                self.at(self.rng.uniform(0.0, scenario.trouble), what)
        for _ in range(round(scenario.full_disks * scenario.trouble)):
            self.at(self.rng.uniform(0.0, scenario.trouble), self._fill_disk)

    def play(self) -> None:
        """Until all is over.  Violation if something is wrong, or it never ends."""
        while self.step():
            looks = self.now > self.peace + 5.0 and self.counts["events"] % 16 == 0
            if looks and self._all_over() and self._is_at_rest():
                break
            if self.now > self.peace + PATIENCE:
                raise Violation("it never ends")
        self.judge.conclude()

    def close(self) -> None:
        """Release what it holds."""
        if self.broker is not None:
            self.broker.kill()
        self.disk.close()

    def _all_over(self) -> bool:
        return (
            not self._expected
            and self.console.idle
            and all(map(self.is_over, self.detached))
            and all(initiator.gone for initiator in self.initiators)
        )

    def _is_at_rest(self) -> bool:
        """Whether whatever nobody waits for has had its time, too, if that is not too long."""
        limits = self.scenario.limits
        broker = self.broker
        # a broker that restarts late continues requests without initiators
        idle = broker and all(each.over for each in broker.scheduler.state.requests.values())
        self._quiet = min(self._quiet, self.now) if idle else math.inf
        longest = limits.lease + limits.absence + limits.patience + limits.kill
        return not self.scenario.long or self.now > self._quiet + longest + self.scenario.delay

    def is_over(self, request: str) -> bool:
        """Whether the broker knows that a request is over, or once did."""
        known = self.broker.scheduler.state.requests.get(request) if self.broker else None
        return self.disk.is_closed(request) or (known is not None and known.over)

    # -- what there is -------------------------------------------------------------------------

    def _make_graph(self) -> dict[str, StepSpec]:
        offers: list[StepSpec] = []
        for n in range(self.scenario.steps):
            below = self.rng.sample(offers, min(len(offers), self.rng.choice((0, 1, 1, 2, 3))))
            name = f"s{n}"
            if self.rng.random() < self.scenario.bad_steps:
                name += "-bad"
            elif self.rng.random() < self.scenario.poison:
                name += "-poison"
            needs: tuple[str, ...] = ()
            if self.rng.random() < self.scenario.foreign:
                needs = ("what nobody has",)
            elif self.rng.random() < self.scenario.special:
                needs = (SPECIAL,)
            offers.append(self._offer(name, tuple(offer.key for offer in below), needs))
        return {offer.key: offer for offer in (*offers, *self._edited(offers))}

    def _edited(self, offers: list[StepSpec]) -> Iterator[StepSpec]:
        """The steps of a second version of the definitions that have other keys."""
        rng = random.Random(f"edits {self.scenario.seed}")
        new: dict[str, str] = {}  # key -> that of the second version
        for offer in offers:
            edit = rng.choice(("comment", "change")) if rng.random() < self.scenario.edits else ""
            depends = tuple(new.get(key, key) for key in offer.depends)
            if edit or depends != offer.depends:
                edited = self._offer(offer.name, depends, offer.needs, f"e{offer.name[1:]}", edit)
                new[offer.key] = edited.key
                yield edited

    def _offer(
        self,
        name: str,
        depends: tuple[str, ...],
        needs: tuple[str, ...],
        shown: str = "",
        edit: str = "",
    ) -> StepSpec:
        """A step; every other one gives the same whatever its dependencies give.

        In the second version it has the name ``shown`` here.
        """

        def digest(*parts: object) -> str:
            return hashlib.sha256(repr((self.scenario.seed, name, parts)).encode()).hexdigest()

        recipe = digest(edit)
        key = digest(recipe, depends)
        below = [self.outputs[one] for one in depends] if int(digest(), 16) % 2 else []
        self.outputs[key] = bytes.fromhex(digest(edit == "change", below)) * 200
        job = Job(
            key=key, kind="chunk", name=name, arch=ARCH, log=f"build-step-{shown or name}.log",
            artifacts=(name,), recipe=recipe, staged=tuple(Staged(one, "s") for one in depends),
        )  # fmt: skip
        return StepSpec(
            key=key,
            name=shown or name,
            kind="chunk",
            arch=ARCH,
            job=msgspec.Raw(msgspec.msgpack.encode(job)),
            log=job.log,
            depends=depends,
            needs=needs,
            # like a step that is built once more: on another worker, if one can
            again=depends[0] if depends and key[0] in "0123" else "",
        )

    def _make_kinds(self) -> dict[str, Kind]:
        """The last worker is always a good one."""
        bad: list[Kind] = []
        bad.extend("sick" for _ in range(self.scenario.sick))
        bad.extend("liar" for _ in range(self.scenario.liars))
        bad.extend("shy" for _ in range(self.scenario.shy))
        count = self.scenario.workers
        del bad[count - 1 :]
        return {f"w{n}": bad[n] if n < len(bad) else "good" for n in range(count)}

    def _start_builder(self, name: str) -> None:
        runs = self.counts["workers started"] = self.counts["workers started"] + 1
        node = f"{name}/{runs}"
        # The last one is able to do what some are.
        features = (SPECIAL,) if name == list(self.kinds)[-1] or int(name[1:]) % 2 else ()
        builder = Builder(self, name, node, self.kinds[name], self.scenario.slots, features)
        self.builders[name] = builder

    def resolve(self, order: BuildOrder) -> BuildGraph | None:
        """What an order comes to; None if it comes to nothing."""
        goals = self.goals[order.request]
        if goals is None:
            self.inject("unresolvable order", order.request)
            return None
        return BuildGraph(PROTOCOL, order.request, order.title, tuple(self.graph.values()), goals)

    # -- the store -----------------------------------------------------------------------------

    def store_delay(self) -> float:
        if self._stalled:
            stalled, self._stalled = self._stalled, 0.0
            return stalled
        slow = self.now < self._slow_until
        return self.lasts(1.0, 8.0) if slow else self.rng.uniform(0.001, 0.05)

    # -- messages ------------------------------------------------------------------------------

    def to_broker(self, source: str, message: FromPeer) -> None:
        what = type(message).__name__
        self.send(source, "broker", what, partial(self._hear, source, message, self.now))

    def _hear(self, source: str, message: FromPeer, sent: float) -> None:
        if self.broker is not None:
            self.broker.transport.hear(source, message, sent)

    def publish(self, source: str, piece: Published) -> None:
        """A worker publishes a piece of log."""
        self.send(source, "broker", "a line of log", partial(self._log, source, piece))

    def _log(self, source: str, piece: Published) -> None:
        if self.broker is not None:
            self.broker.transport.read(source, piece)

    def to_node(self, node: str, message: Message) -> None:
        peers: tuple[Initiator | Builder | Console, ...] = (
            *self.initiators,
            *self.builders.values(),
            self.console,
        )
        for peer in peers:
            if peer.node == node:
                peer.hear(message)

    # -- users ---------------------------------------------------------------------------------

    def _wish(self) -> None:
        """Somebody wants something."""
        self._expected -= 1
        rng, scenario = self.rng, self.scenario
        # Not too many, so that requests share much.
        top = list(self.graph)[: self.scenario.steps][-6:]
        if rng.random() < 0.5:
            top = list(self.graph)[-6:]
        goals = tuple(rng.sample(top, min(len(top), rng.randint(1, 3))))
        id = f"request {len(self.wishes):02}"
        detach = rng.random() < scenario.detached
        common = {
            "keep_going": scenario.keep_going,
            "fail_fast": scenario.fail_fast,
            "priority": rng.choice((-1, 0, 0, 2)),
            "requester": rng.choice(REQUESTERS),
            "detach": detach,
        }
        wish: BuildOrder | BuildGraph
        if rng.random() < scenario.orders:
            wish = BuildOrder(PROTOCOL, id, id, f"refs/builds/{id}", "c" * 40, "a.morph")
            self.goals[id] = None if rng.random() < scenario.bad_orders else goals
        else:
            wish = BuildGraph(PROTOCOL, id, id, tuple(self.graph.values()), goals)
            self.goals[id] = goals
        self.wishes[id] = wish = msgspec.structs.replace(wish, **common)
        initiator = self._follow(wish)
        if detach:
            self.at(rng.uniform(0.5, 5.0), partial(self._let_go, initiator))

    def _follow(self, wanted: BuildOrder | BuildGraph | str) -> Initiator:
        initiator = Initiator(self, f"i{len(self.initiators)}", wanted)
        self.initiators.append(initiator)
        return initiator

    def _let_go(self, initiator: Initiator) -> None:
        """Nobody need watch a detached request once it is accepted."""
        request = initiator.mirror.request
        if initiator.mirror.accepted or initiator.gone:
            self.detached.add(request)
            if not initiator.gone:
                initiator.depart(politely=self.rng.random() < 0.5)
            self._expected += 1
            later = max(self.peace - self.now, 0.0) + self.rng.uniform(0.0, 20.0)
            self.at(self.rng.choice((1.0, 5.0, later)), partial(self._attach, request))
        else:
            self.at(0.5, partial(self._let_go, initiator))

    def _attach(self, request: str) -> None:
        self._expected -= 1
        self._follow(request)

    def _depart(self) -> None:
        """A user presses Ctrl-C, or an initiator is killed; it comes back, or others ask."""
        here = [each for each in self.initiators if not each.gone and not each.detached]
        if not here:
            return
        initiator = self.rng.choice(here)
        self._expected += 1
        self.inject("initiator gone", initiator.node)
        politely = self.rng.random() < 0.4
        initiator.depart(politely=politely)
        if politely:
            self.at(self.rng.choice((0.0, 0.5, 5.0)), self._wish)
        else:
            self.at(self.rng.uniform(0.2, 8.0), partial(self._attach, initiator.mirror.request))

    def _cancel(self) -> None:
        if self.wishes:
            request = self.rng.choice(list(self.wishes))
            self.inject("cancel", request)
            self.cancelled.add(request)
            self.console.command("cancel", request)

    def _drain(self) -> None:
        name = self.rng.choice(list(self.kinds))
        self.inject("drain", name)
        self.console.command("drain", name)
        resume = partial(self.console.command, "resume", name)
        self.at(min(self.rng.uniform(1.0, 20.0), max(0.0, self.peace - self.now)), resume)

    def _question(self) -> None:
        what = self.rng.choice(QUESTIONS)
        about = ""
        if what in ("why", "update", "graph", "attempts"):
            about = self.rng.choice([*self.names.values(), *self.wishes])
        self.console.query(what, about)

    def refused(self, builder: Builder, reason: str) -> None:
        """A worker is told that it is refused.  It goes on, as real ones do."""
        if not self.scenario.tardy:
            raise Violation(f"{builder.node} is refused: {reason}")

    def answered(self, asked: Command | Query, answer: Answer) -> None:
        """The console got an answer."""
        self.counts["answers"] += 1
        if isinstance(asked, Query) and asked.what == "why":
            assert answer.lines or answer.error, f"nobody knows why {asked.about}"

    # -- what goes wrong -----------------------------------------------------------------------

    def crash(self, builder: Builder, absent: float = 0.0) -> None:
        """A worker crashes, to be back after so many seconds, or whenever."""
        if builder.alive:
            self.inject("worker crash", builder.node)
        self.gone(builder, absent)

    def gone(self, builder: Builder, absent: float = 0.0) -> None:
        """A worker is no more.  It returns after a while, unless one is left that can do all."""
        if not builder.alive:
            return
        builder.alive = False
        good = any(
            each.alive and each.kind == "good" and SPECIAL in each.agent.features
            for each in self.builders.values()
        )  # fmt: skip
        if good and self.rng.random() < 0.3:
            return
        absent = absent or self.rng.choice((0.5, self.lasts(0.1, 20.0)))
        self.at(absent, partial(self._start_builder, builder.name))

    def _crash_builder(self) -> None:
        self.crash(self.rng.choice(list(self.builders.values())))

    def slot_kept(self, name: str) -> None:
        """A worker keeps a slot while the store is asked: the moment to be lost for long."""
        crashes = self.scenario.crashes + self.scenario.parting
        if crashes and not self.peaceful and self.rng.random() < 0.7:
            self._stalled = 1.5 * self.scenario.lease
            self.crash(self.builders[name], absent=2 * self.scenario.lease)

    def _stop_builder(self) -> None:
        builder = self.rng.choice(list(self.builders.values()))
        self.inject("worker stopped", builder.node)
        builder.stop()

    def _crash_broker(self) -> None:
        if self.broker is not None:
            self.inject("broker crash")
            if self.rng.random() < 0.3:
                self.broker.stop()
            else:
                self.broker.kill()
            self._wait_for_broker()

    def lose_broker(self, why: str) -> None:
        """The broker ends by itself, at once."""
        assert self.broker is not None
        self.tell(f"-- the broker is {why}")
        self.rare(f"the broker is {why}")
        self.broker.kill()
        self._wait_for_broker()

    def _wait_for_broker(self) -> None:
        """It will be started again."""
        self.broker = None
        self.at(self.lasts(0.1, 15.0), self._start_broker)

    def _kill_writing_broker(self) -> None:
        self.disk.killed_after = self.rng.randint(1, 6)

    def _set_clock(self) -> None:
        """The clock of the broker's machine jumps."""
        before = self.disk.clock_is_off
        self.disk.clock_is_off = self.rng.choice((-1e6, -50.0, -1.0, 0.0, 3.0, 1e5))
        if self.disk.clock_is_off < before:
            self.rare("the clock of the broker's machine went back")
        self.inject("clock set", f"by {self.disk.clock_is_off - before:.0f} s")

    def _fill_disk(self) -> None:
        self.inject("full disk of the broker")
        self.disk.full_until = min(self.peace, self.now + self.lasts(0.1, 10.0))
        if self.scenario.restarts:
            self.at(self.rng.uniform(0.0, self.disk.full_until - self.now), self._crash_broker)

    def _start_broker(self) -> None:
        try:
            self.broker = Run(self, self.disk)
        except (MachineFault, Killed) as fault:  # whoever started it tries again
            self.tell(f"-- the broker does not start: {fault}")
            self.rare("the broker does not start")
            self.at(2.0, self._start_broker)
        else:
            self.tell("-- the broker is back")
            if not self.peaceful and self.rng.random() < self.scenario.series:
                self.at(self.rng.uniform(0.05, 4.0), self._crash_broker)

    def _cut_somebody(self) -> None:
        self.cut(self._somebody(), self.lasts(0.5, 30.0))

    def _stop_process(self) -> None:
        self.stop_process(self._somebody(), self.lasts(0.1, 12.0))

    def _somebody(self) -> str:
        nodes = ["broker", "console", *(builder.node for builder in self.builders.values())]
        nodes += [each.node for each in self.initiators if not each.gone]
        return self.rng.choice(nodes)

    def _store_goes_away(self) -> None:
        self.inject("store outage")
        self._away_until = min(self.peace, self.now + self.lasts(0.1, 5.0))

    def _store_slows_down(self) -> None:
        self.inject("slow store")
        self._slow_until = min(self.peace, self.now + self.lasts(1.0, 10.0))

    def _damage(self) -> None:
        """An artifact rots, or is lost."""
        if key := self.warehouse.damage(self.rng):
            self.inject("damaged artifact", self.names[key])

    def _make_peace(self) -> None:
        self.tell("-- peace")
        self._resume()

    def _resume(self) -> None:
        """The operator lets all workers go on."""
        if self.broker is not None:
            for name in self.broker.scheduler.state.drained:
                self.console.command("resume", name)
        if not self._all_over():
            self.at(2.0, self._resume)

    # -- where everything stands ---------------------------------------------------------------

    def report(self) -> str:
        """The story, and where everything stands."""
        lines = [*self.story(), "", f"{self.scenario}", f"faults: {dict(self.faults)}"]
        lines.append(f"at {self.now:.3f}, peace since {self.peace:.3f}")
        if self.broker is None:
            lines.append("there is no broker")
        else:
            scheduler = self.broker.scheduler
            for request in scheduler.state.requests.values():
                told = f"{request.open} open, {request.running} running {request.message}"
                lines.append(f"{request.id}: {request.state}, {told}")
            for task in scheduler.state.tasks.values():
                if task.state not in PRESENT:
                    lines += [
                        str(why(scheduler.state, task.key, self.broker.clock())),
                        history(task),
                    ]
        for builder in self.builders.values():
            running = [(self.names[key], fence) for key, fence in builder.agent.running]
            lines.append(f"{builder.node} ({builder.kind}) alive={builder.alive} runs {running}")
        for initiator in self.initiators:
            mirror = initiator.mirror
            lines.append(
                f"{initiator.node}: {mirror.request} {mirror.state} {mirror.message}"
                f" complete={mirror.complete} gone={initiator.gone}"
            )
        return "\n".join(lines)
