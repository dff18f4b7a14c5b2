"""A stage for stories about the core: builds written as lines, workers that do as they are told.

A build is text, a line for each step: what it is called and what it needs::

    app: lib zlib
    lib: zlib
    zlib:

The store answers at once, unless a story holds it back.  Every event is followed by a check of
all invariants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from core_kit import contents
from machine_kit import Machine, key_of, specs_of

from fabric.scheduling import events
from fabric.scheduling.explain import history, why
from fabric.scheduling.invariants import validate
from fabric.scheduling.model import Durations, Limits
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    Leave,
    Outcome,
    Poll,
    Query,
    QueryKind,
    StepState,
    Update,
)


class Stage:
    """One core, its workers, and a store."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        durations: Durations | None = None,
        epoch: int = 1,
        stored: Iterable[str] = (),
        drained: Iterable[str] = (),
        recovering: bool = False,
        now: float = 100.0,
    ) -> None:
        self.now = now
        self.limits = limits or Limits()
        self.scheduler = Scheduler(
            self.limits,
            epoch=epoch,
            durations=durations,
            drained=frozenset(drained),
            recovering=recovering,
            now=now,
        )
        self.stored = {key_of(name) for name in stored}
        self.spoilt: set[str] = set()  # keys of artifacts there that nobody can use
        self.store_answers = True
        self.asked: list[list[str]] = []  # names, as the store was asked
        self.inspected: list[list[str]] = []  # names, as it was to look closer
        self.machines: dict[str, Machine] = {}
        self.effects: list[events.Effect] = []  # of the last event from outside
        self.refusals: list[events.Reject] = []
        self.learned: list[events.Learned] = []
        self.began: list[events.Began] = []
        self.ended: list[events.Ended] = []
        self.answers: list[Answer] = []
        #: names of steps whose outputs others had before, and of those that have an equal step
        self.familiar: set[str] = set()
        self.equal: set[str] = set()
        self.compared: list[list[str]] = []  # names, as the store was to look for equal steps
        self.compares = True  # it answers these questions, too
        self._questions: list[events.QueryStore | events.CompareStore | events.InspectStore] = []
        self._names: dict[str, str] = {}

    # -- events ----------------------------------------------------------------------------

    def handle(self, event: events.Event) -> None:
        """One event, and the store's answers that follow from it."""
        self.effects = self._handle(event)
        while self.store_answers and (asks := self._answerable()):
            ask = asks[0]
            self._questions.remove(ask)
            if isinstance(ask, events.InspectStore):
                gone = frozenset(
                    key for key in ask.keys if key in self.spoilt or key not in self.stored
                )
                self.stored -= gone
                self.spoilt -= gone
                self.effects += self._handle(events.StoreInspected(gone))
            elif isinstance(ask, events.CompareStore):
                equal = frozenset(step.key for step in ask.steps if step.name in self.equal)
                self.stored |= equal
                self.effects += self._handle(events.StoreCompared(ask.question, equal))
            else:
                present = frozenset(key for key in ask.keys if key in self.stored)
                built = {step.key for step in ask.built if step.name in self.familiar}
                answer = events.StoreAnswered(ask.question, present, present & built)
                self.effects += self._handle(answer)

    def _answerable(self) -> list[events.QueryStore | events.CompareStore | events.InspectStore]:
        asks = self._questions
        return [each for each in asks if self.compares or not isinstance(each, events.CompareStore)]

    def _handle(self, event: events.Event) -> list[events.Effect]:
        effects = self.scheduler.handle(event, self.now)
        validate(self.scheduler.state, self.now)
        for effect in effects:
            match effect:
                case events.QueryStore():
                    self.asked.append([self._names[key] for key in effect.keys])
                    self._questions.append(effect)
                case events.CompareStore():
                    self.compared.append([step.name for step in effect.steps])
                    self._questions.append(effect)
                case events.InspectStore():
                    self.inspected.append([self._names[key] for key in effect.keys])
                    self._questions.append(effect)
                case events.Reply():
                    self.answers.append(effect.answer)
                case events.Reject():
                    self.refusals.append(effect)
                case events.Learned():
                    self.learned.append(effect)
                case events.Began():
                    assert _id(effect) not in map(_id, self.began), "it began twice"
                    self.began.append(effect)
                case events.Ended():
                    assert _id(effect) in map(_id, self.began), "it ended, and never began"
                    assert _id(effect) not in map(_id, self.ended), "it ended twice"
                    self.ended.append(effect)
        return effects

    def submit(
        self,
        text: str,
        *goals: str,
        request: str = "r1",
        keep_going: bool = False,
        fail_fast: bool = False,
        needs: dict[str, tuple[str, ...]] | None = None,
        arch: str = "x86_64",
        priority: int = 0,
        detach: bool = False,
        requester: str = "",
    ) -> None:
        """Somebody wants these goals; by default the first step of the text."""
        self.handle(
            msgspec.structs.replace(
                self.submit_of(text, *goals, request=request, needs=needs, arch=arch),
                keep_going=keep_going,
                fail_fast=fail_fast,
                priority=priority,
                detach=detach,
                requester=requester,
            )
        )

    def submit_of(
        self,
        text: str,
        *goals: str,
        request: str = "r1",
        needs: dict[str, tuple[str, ...]] | None = None,
        arch: str = "x86_64",
    ) -> BuildGraph:
        specs = specs_of(text, needs=needs, arch=arch)
        self._names |= {spec.key: spec.name for spec in specs}
        wanted = tuple(map(key_of, goals)) or (specs[0].key,)
        return BuildGraph(PROTOCOL, request, "a test", specs, wanted)

    def order(self, request: str = "r1", *, detach: bool = False, requester: str = "") -> None:
        """Somebody wants what a commit says."""
        self.handle(
            BuildOrder(
                PROTOCOL,
                request,
                "an order",
                f"refs/builds/me/{request}",
                "c" * 40,
                "systems/small.morph",
                detach=detach,
                requester=requester,
            )
        )

    def resolve(self, text: str, *goals: str, request: str = "r1") -> None:
        """What was ordered turns out to be this."""
        self.handle(events.Resolved(request, self.submit_of(text, *goals, request=request)))

    def command(
        self, what: Literal["cancel", "drain", "resume"], about: str, *, id: str = ""
    ) -> Answer:
        id = id or f"command {len(self.answers)}"
        self.handle(Command(PROTOCOL, id, what, about))
        return self.answers[-1]

    def query(self, what: QueryKind, about: str = "", seen: int = 0) -> Answer:
        """The answer to a query, which changes nothing."""
        before = contents(self.scheduler.state)
        answer = self.scheduler.answer(Query(PROTOCOL, "q", what, about, seen), self.now)
        assert contents(self.scheduler.state) == before, f"{what} {about} changes the core"
        return answer

    def leave(self, request: str = "r1") -> None:
        self.handle(Leave(request))

    def poll(self, request: str = "r1") -> None:
        self.handle(Poll(request, 0))

    def wait(self, seconds: float, *, alive: Iterable[str] = (), polls: Iterable[str] = ()) -> None:
        """Time passes, in steps of half a second; who is alive reports, who is there polls."""
        alive, polls = list(alive), list(polls)
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.5)
            for name in alive:
                self.report(name)
            for request in polls:
                self.poll(request)
            self.handle(events.Tick())

    def refuse_to_answer(self, message: str = "no route to host") -> None:
        """The store fails to answer all that it was asked."""
        questions, self._questions = self._questions, []
        for ask in questions:
            if isinstance(ask, events.InspectStore):
                self._handle(events.StoreInspected(frozenset(), message))
            else:
                self._handle(events.StoreFailed(ask.question, message))

    def answer_first(self) -> None:
        """The store, which does not answer by itself, has nothing of what it was asked first."""
        ask = self._questions.pop(0)
        assert isinstance(ask, events.QueryStore)
        self._handle(events.StoreAnswered(ask.question, frozenset(), frozenset()))

    def answer(self) -> None:
        """The store answers after all."""
        self.store_answers = True
        self.handle(events.Tick())

    # -- workers ---------------------------------------------------------------------------

    def worker(
        self,
        *names: str,
        slots: int = 1,
        arch: str = "x86_64",
        features: tuple[str, ...] = (),
    ) -> None:
        """Workers come, and do what they are told."""
        for name in names:
            self.machines[name] = Machine(name, slots, arch, features)
            self.sync(name)

    def report(self, name: str) -> None:
        """A worker reports, and does not hear the answer."""
        self.handle(self.machines[name].report())

    def hear(self, name: str) -> None:
        """A worker does what it is now told."""
        desired = self.scheduler.desired(name)
        assert desired is not None
        self.machines[name].obey(desired)

    def sync(self, *names: str) -> None:
        """Workers report, hear, and report that they have heard."""
        for name in names or list(self.machines):
            self.report(name)
            self.hear(name)
            self.report(name)

    def restart(self, name: str) -> None:
        """A worker crashed, and is there again."""
        old = self.machines[name]
        self.machines[name] = Machine(name, old.slots, old.arch, old.features)
        self.machines[name].instance = f"{old.instance}, and again"
        self.sync(name)

    def ends(
        self,
        name: str,
        result: str,
        *,
        seconds: float = 1.0,
        message: str = "",
        damaged: Iterable[str] = (),
        stores: bool = True,
        tell: bool = True,
        manifest: str = "",
        built: bool = True,
    ) -> None:
        """The attempt at a step ends on the worker that runs it."""
        key = key_of(name)
        for machine in self.machines.values():
            for id in [id for id in machine.running if id[0] == key]:
                del machine.running[id]
                if result == "done" and stores:
                    self.stored.add(key)
                machine.finished[id] = msgspec.convert(
                    {"key": key, "fence": id[1], "result": result, "message": message,
                     "seconds": seconds, "damaged": tuple(map(key_of, damaged)),
                     "command": "make" if result == "failed" else "",
                     "manifest": manifest, "built": built},
                    Outcome,
                )  # fmt: skip
                if tell:
                    self.report(machine.name)
                    self.sync(machine.name)
                return
        raise AssertionError(f"nobody runs {name}: {self.running()}")

    def done(self, *names: str, seconds: float = 1.0) -> None:
        for name in names:
            self.ends(name, "done", seconds=seconds)
            self.sync()

    # -- what is to be seen ----------------------------------------------------------------

    def running(self) -> dict[str, list[str]]:
        """What each worker runs, by names."""
        return {
            machine.name: [self._names[key] for key, _ in machine.running]
            for machine in self.machines.values()
            if machine.running
        }

    def all_running(self) -> list[str]:
        return sorted(name for names in self.running().values() for name in names)

    def update(self, request: str = "r1", seen: int = 0) -> Update:
        update = self.scheduler.update(request, seen, self.now)
        assert update is not None
        return update

    def steps(self, request: str = "r1") -> dict[str, StepState]:
        return {self._names[step.key]: step for step in self.update(request).steps}

    def states(self, request: str = "r1") -> dict[str, str]:
        """Each step the request was told of, and its state."""
        return {name: step.state for name, step in self.steps(request).items()}

    def verdict(self, request: str = "r1") -> str:
        return self.update(request).state

    def why(self, name: str) -> str:
        return str(why(self.scheduler.state, key_of(name), self.now))

    def history(self, name: str) -> str:
        return history(self.scheduler.state.tasks[key_of(name)])


def _id(effect: events.Began | events.Ended) -> tuple[str, int]:
    return effect.key, effect.fence


def building(text: str, *workers: str) -> Stage:
    """Workers that are at what a text describes."""
    stage = Stage()
    stage.worker(*workers)
    stage.submit(text)
    stage.sync()
    return stage
