"""Anything may happen at any moment: hypothesis looks for an order of events that breaks the core.

The invariants are checked after each event; in the end there is peace, and all has to be over.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from machine_kit import key_of
from scheduling_kit import Stage

from fabric.scheduling import events
from fabric.scheduling.state import FENCES as EPOCH
from fabric.wire.messages import Outcome, QueryKind, Running

NAMES = ("a", "b", "c", "d", "e", "f")
WORKERS = ("w1", "w2", "w3")
FENCES = st.integers(min_value=0, max_value=12)
RESULTS = ("done", "done", "failed", "fault", "refused", "cancelled", "lies")


class Anything(RuleBasedStateMachine):
    """One broker, up to three workers, any number of requests for six steps."""

    @initialize(graph=st.integers(min_value=0, max_value=2**15 - 1))
    def begin(self, graph: int) -> None:
        pairs = [(x, y) for n, y in enumerate(NAMES) for x in NAMES[:n]]
        below = dict.fromkeys(NAMES, "")
        for bit, (x, y) in enumerate(pairs):
            if graph >> bit & 1:
                below[y] += f" {x}"
        self.text = "\n".join(f"{name}:{needs}" for name, needs in below.items())
        self.stage = Stage()
        self.requests = 0

    @rule(
        goals=st.sets(st.sampled_from(NAMES), min_size=1),
        keep_going=st.booleans(),
        fail_fast=st.booleans(),
    )
    def submit(self, goals: set[str], keep_going: bool, fail_fast: bool) -> None:
        self.requests += 1
        self.stage.submit(
            self.text,
            *sorted(goals),
            request=f"r{self.requests}",
            keep_going=keep_going,
            fail_fast=fail_fast,
        )

    @rule(detach=st.booleans(), requester=st.sampled_from(("alice", "bob")))
    def order(self, detach: bool, requester: str) -> None:
        self.requests += 1
        self.stage.order(f"r{self.requests}", detach=detach, requester=requester)

    @precondition(lambda self: self.requests)
    @rule(
        number=st.integers(min_value=1, max_value=6),
        goals=st.sets(st.sampled_from(NAMES), max_size=3),
    )
    def resolve(self, number: int, goals: set[str]) -> None:
        request = f"r{min(number, self.requests)}"
        if goals:
            self.stage.resolve(self.text, *sorted(goals), request=request)
        else:
            self.stage.handle(events.Unresolved(request, "no such system"))

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(min_value=1, max_value=6))
    def cancel(self, number: int) -> None:
        self.stage.command("cancel", f"r{min(number, self.requests)}")

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(min_value=1, max_value=6))
    def forget(self, number: int) -> None:
        """It cannot be written down."""
        self.stage.handle(events.NotJournaled(f"r{min(number, self.requests)}"))

    @rule(name=st.sampled_from(WORKERS), what=st.sampled_from(("drain", "resume")))
    def command(self, name: str, what: Literal["drain", "resume"]) -> None:
        self.stage.command(what, name)

    @rule(name=st.sampled_from(WORKERS))
    def refuse(self, name: str) -> None:
        if name in self.stage.machines:
            machine = self.stage.machines[name]
            machine.refusing = "" if machine.refusing else "disk full"

    @rule(name=st.sampled_from(NAMES))
    def rot(self, name: str) -> None:
        """An artifact is damaged in the store."""
        self.stage.spoilt.add(key_of(name))

    @precondition(lambda self: self.stage.running())
    @rule(data=st.data(), damaged=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
    def complain(self, data: st.DataObject, damaged: set[str]) -> None:
        """A worker finds something damaged, rightly or not."""
        name = data.draw(st.sampled_from(self.stage.all_running()))
        self.stage.ends(name, "fault", damaged=sorted(damaged))

    @rule(what=st.sampled_from(("requests", "workers", "pinned", "logs", "attempts")))
    def ask(self, what: QueryKind) -> None:
        assert not self.stage.query(what).error

    @precondition(lambda self: self.requests)
    @rule(
        what=st.sampled_from(("update", "graph", "attempts", "why", "logs")),
        number=st.integers(min_value=1, max_value=6),
        seen=st.integers(min_value=0, max_value=EPOCH + 40),
    )
    def look(self, what: QueryKind, number: int, seen: int) -> None:
        self.stage.query(what, f"r{number}", seen)

    @rule(name=st.sampled_from(NAMES))
    def ask_why(self, name: str) -> None:
        answer = self.stage.query("why", name)
        assert answer.lines or answer.error

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(min_value=1, max_value=6))
    def leave(self, number: int) -> None:
        self.stage.leave(f"r{min(number, self.requests)}")

    @rule(name=st.sampled_from(WORKERS), slots=st.integers(min_value=1, max_value=3))
    def come(self, name: str, slots: int) -> None:
        if name in self.stage.machines:
            self.stage.restart(name)
        else:
            self.stage.worker(name, slots=slots)

    @precondition(lambda self: self.stage.machines)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        """A worker is never heard of again."""
        del self.stage.machines[data.draw(st.sampled_from(sorted(self.stage.machines)))]

    @rule(name=st.sampled_from(WORKERS))
    def report(self, name: str) -> None:
        if name in self.stage.machines:
            self.stage.report(name)

    @rule(name=st.sampled_from(WORKERS))
    def sync(self, name: str) -> None:
        if name in self.stage.machines:
            self.stage.sync(name)

    @rule(name=st.sampled_from(WORKERS))
    def drain(self, name: str) -> None:
        if name in self.stage.machines:
            machine = self.stage.machines[name]
            machine.draining = not machine.draining

    @precondition(lambda self: self.stage.running())
    @rule(data=st.data(), result=st.sampled_from(RESULTS), tell=st.booleans())
    def end(self, data: st.DataObject, result: str, tell: bool) -> None:
        name = data.draw(st.sampled_from(self.stage.all_running()))
        stores = result != "lies"
        self.stage.ends(name, result if stores else "done", stores=stores, tell=tell)

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 12.0, 40.0]), poll=st.booleans())
    def wait(self, seconds: float, poll: bool) -> None:
        stage = self.stage
        polls = [id for id, request in stage.scheduler.state.requests.items() if not request.over]
        stage.wait(seconds, alive=stage.machines, polls=polls if poll else [])

    @rule()
    def store_hangs(self) -> None:
        self.stage.store_answers = False

    @rule()
    def store_fails(self) -> None:
        self.stage.refuse_to_answer()

    @rule()
    def store_answers(self) -> None:
        self.stage.answer()

    @rule(name=st.sampled_from(NAMES))
    def appear(self, name: str) -> None:
        """Another broker builds it, in the same store."""
        self.stage.stored.add(key_of(name))

    @rule(name=st.sampled_from(NAMES), equal=st.booleans())
    def know(self, name: str, equal: bool) -> None:
        """The output of a step is known, or a step equal to it."""
        (self.stage.equal if equal else self.stage.familiar).add(name)

    @rule(
        name=st.sampled_from(WORKERS),
        running=st.lists(st.tuples(st.sampled_from(NAMES), FENCES), max_size=3),
        finished=st.lists(st.tuples(st.sampled_from(NAMES), FENCES), max_size=3),
        result=st.sampled_from(["done", "failed", "fault", "cancelled"]),
    )
    def babble(
        self,
        name: str,
        running: list[tuple[str, int]],
        finished: list[tuple[str, int]],
        result: str,
    ) -> None:
        """A worker reports things that never were."""
        if name not in self.stage.machines:
            return
        report = self.stage.machines[name].report()
        outcomes = [
            {"key": key_of(step), "fence": EPOCH + fence, "result": result}
            for step, fence in finished
        ]
        self.stage.handle(
            msgspec.structs.replace(
                report,
                running=tuple(Running(key_of(step), EPOCH + fence) for step, fence in running),
                finished=msgspec.convert(outcomes, tuple[Outcome, ...]),
            )
        )

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        stage = self.stage
        stage.answer()
        for request in [each for each in stage.scheduler.state.requests.values() if not each.over]:
            if request.state == "resolving":
                stage.resolve(self.text, "a", request=request.id)
        stage.worker("good", slots=2)
        for _ in range(60):
            live = [r.id for r in stage.scheduler.state.requests.values() if not r.over]
            if not live:
                break
            stage.wait(1.0, alive=["good"], polls=live)
            for name in stage.all_running():
                if name in stage.all_running():
                    stage.ends(name, "done")
            stage.sync()
        verdicts = {r.id: r.state for r in stage.scheduler.state.requests.values()}
        assert all(state in ("done", "failed", "cancelled") for state in verdicts.values()), (
            verdicts
        )
        stage.sync()
        assert not stage.scheduler.state.tasks
        assert not stage.scheduler.state.requesters


Anything.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestAnything = Anything.TestCase
