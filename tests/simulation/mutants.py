"""Repairs taken out again, one at a time: the simulator has to notice each.

``make mutants`` plays seeds for each until one is violated, and prints how many that took.  What
is named like C1 was found by a review; the rest are promises that the design makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
from campaign import processes, wrong_with
from scenarios import Scenario

from fabric.building.agent import WorkerAgent
from fabric.client.request import RequestMirror
from fabric.client.request_logs import ENDED, LogMirror
from fabric.controller.journal import Journal
from fabric.controller.outbox import ReplyOutbox
from fabric.controller.spools import Spools
from fabric.controller.store_client import StoreClient
from fabric.scheduling import attempts, events, requests, retries, scheduler, store, workers
from fabric.scheduling.scheduler import Scheduler
from fabric.scheduling.shares import Share
from fabric.trove.artifacts import contents

#: Seconds of real time that one seed may take.
PATIENCE = 30

Old = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """``change`` makes of the function ``name`` of a class or module one with a fault."""

    fault: str
    owner: type | ModuleType
    name: str
    change: Callable[[Old], Old]

    def put_in(self) -> None:
        old = getattr(self.owner, self.name)
        new = self.change(old)
        setattr(self.owner, self.name, new)
        for module in list(sys.modules.values()):  # others may have imported it by name
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)


MUTANTS: dict[str, Mutant] = {}


def mutant(
    id: str, fault: str, owner: type | ModuleType, name: str
) -> Callable[[Callable[[Old], Old]], None]:
    def register(change: Callable[[Old], Old]) -> None:
        MUTANTS[id] = Mutant(fault, owner, name, change)

    return register


def nothing(_: Old) -> Old:
    """In its place nothing is done."""
    return lambda *_args, **_kwargs: None


# -- what the review found -----------------------------------------------------------------


@mutant("C1", "a slot kept on a lost worker is kept for ever", workers, "check_lease")
def _(old: Old) -> Old:
    def check(state: Any, name: str) -> None:
        worker = state.workers[name]
        if state.now >= worker.heard + state.limits.lease:
            worker.reserved = {}
        old(state, name)

    return check


@mutant("C2", "a worker that hears a former broker ignores later ones", WorkerAgent, "desired")
def _(old: Old) -> Old:
    shunned: dict[int, set[int]] = {}

    def desired(self: Any, message: Any) -> Any:
        mine = shunned.setdefault(id(self), set())
        if message.epoch in mine:
            return []
        if message.epoch != self._epoch:
            mine.add(self._epoch)
            self._epoch = self._answered = 0
        return old(self, message)

    return desired


mutant("C5", "logs stay open when their request ends", LogMirror, "end")(lambda _: lambda *_: [])


@mutant("C6", "the log of a later attempt replaces that of the one used", LogMirror, "follow")
def _(old: Old) -> Old:
    def follow(self: Any, step: Any, now: float) -> Any:
        log = self._logs.get(step.key)
        if log is not None and step.state in ENDED and 0 < step.fence < log.fence:
            step = msgspec.structs.replace(step, fence=log.fence)
        return old(self, step, now)

    return follow


@mutant("C7", "the end of an attempt is reported again", workers, "emit_ended")
def _(old: Old) -> Old:
    def emit(state: Any, attempt: Any, *args: Any) -> None:
        attempt.ended = False
        old(state, attempt, *args)

    return emit


@mutant("C15", "an update after its end opens a request again", RequestMirror, "update")
def _(old: Old) -> Old:
    def update(self: Any, update: Any, now: float) -> Any:
        state, self.state = self.state, "building"
        actions = old(self, update, now)
        if not actions and self.version >= update.version:
            self.state = state
        return actions

    return update


# -- what the design promises --------------------------------------------------------------


@mutant("ack", "initiators get replies that are not durable yet", ReplyOutbox, "_send_durable")
def _(_: Old) -> Old:
    def say(self: Any) -> None:
        while self._waiting:
            _, peer, message = self._waiting.popleft()
            self._send(peer, message)

    return say


@mutant("full", "a request that cannot be written is kept", Journal, "update_status")
def _(old: Old) -> Old:
    def update_status(self: Any) -> list[str]:
        old(self)
        return []

    return update_status


mutant("opened", "requests are not written", Journal, "opened")(nothing)
mutant("closed", "the ends of requests are not written", Journal, "closed")(nothing)


@mutant("settle", "a restarted broker assigns at once", Scheduler, "__init__")
def _(old: Old) -> Old:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        old(self, *args, **{**kwargs, "recovering": False})

    return init


mutant(
    "slept",
    "a broker that was stopped takes all peers for dead",
    scheduler,
    "forgive_standstill",
)(nothing)


@mutant("late", "an old report of a worker counts", workers, "describe")
def _(old: Old) -> Old:
    def describe(state: Any, worker: Any, report: Any) -> None:
        old(state, worker, report)
        worker.sequence = 0

    return describe


@mutant("obey", "a worker follows an older desired state", WorkerAgent, "desired")
def _(old: Old) -> Old:
    def desired(self: Any, message: Any) -> Any:
        self._answered = 0
        return old(self, message)

    return desired


mutant("lost", "attempts stay with a lost worker", workers, "on_loss")(nothing)
mutant("gone", "a lost worker's attempts never end", workers, "check_absence")(nothing)
mutant(
    "stuck",
    "the broker waits for an attempt that a worker does not end",
    attempts,
    "check_cancelled",
)(nothing)
mutant("cooldown", "a refused step is never offered again", retries, "offer_again")(nothing)
mutant("backoff", "a worker that rests gets no more steps", retries, "end_pause")(nothing)
mutant("silent", "the store is queried only once", store, "query_again")(nothing)
mutant("liar", "a false report of damage costs nothing", retries, "count_fault")(
    lambda _: lambda *_: False
)
mutant("suspect", "a damaged artifact is not inspected", store, "suspect")(nothing)
mutant("patience", "a silent initiator never leaves", requests, "check_patience")(nothing)


@mutant("dying", "a step begins while an earlier attempt goes on", attempts, "wait_no_longer")
def _(_: Old) -> Old:
    return lambda *_: True


@mutant("shares", "the oldest request gets all workers", Share, "load")
def _(_: Old) -> Old:
    return lambda *_: 0.0


@mutant("answer", "a store that does not answer counts as empty", StoreClient, "_look_up")
def _(old: Old) -> Old:
    def look_up(self: Any, asks: Any) -> Any:
        answers = old(self, asks)
        return [
            events.StoreAnswered(each.question, frozenset())
            if isinstance(each, events.StoreFailed)
            else each
            for each in answers
        ]

    return look_up


@mutant("equal", "an equal step is not stored", StoreClient, "_compare")
def _(_: Old) -> Old:
    return lambda _, ask: events.StoreCompared(
        ask.question, frozenset(step.key for step in ask.steps)
    )


@mutant("recipe", "steps with equal contents and other recipes are equal", contents, "_digest")
def _(old: Old) -> Old:
    def digest(what: str, value: Any) -> Any:
        return old(what, value[1] if what == "contents" else value)

    return digest


@mutant("output", "all outputs count as equal", contents, "output_of")
def _(old: Old) -> Old:
    return lambda manifest: old(msgspec.structs.replace(manifest, artifacts=()))


@mutant("gap", "the broker appends a piece at any offset", Spools, "append")
def _(old: Old) -> Old:
    def append(self: Any, key: str, fence: int, offset: int, data: Any) -> Any:
        spool = self._spools.get((key, fence))
        return old(self, key, fence, offset if spool is None else spool.have, data)

    return append


@mutant("asked", "gaps in a log are not requested", Spools, "wanted")
def _(_: Old) -> Old:
    return lambda *_: iter(())


def seeds_until_found(id: str, most: int) -> tuple[int, str]:
    """How many seeds it takes, and what goes wrong; 0 if ``most`` do not do."""
    first = time.time_ns() // 1000 % 10**10
    with processes(_put_in, id) as pool:
        for number, wrong in enumerate(pool.map(_wrong, range(first, first + most)), 1):
            if wrong:
                pool.shutdown(cancel_futures=True)
                return number, wrong
    return 0, ""


def _put_in(id: str) -> None:
    signal.signal(signal.SIGALRM, _hangs)
    MUTANTS[id].put_in()
    gc.freeze()


def _wrong(seed: int) -> str:
    signal.alarm(PATIENCE)
    wrong = wrong_with(Scenario.of(seed))
    signal.alarm(0)
    return f"{wrong.strip().splitlines()[-1]} ({seed})" if wrong else ""


def _hangs(*_: object) -> None:
    raise AssertionError(f"it goes on for {PATIENCE} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ids", nargs="*", metavar="ID", default=list(MUTANTS))
    parser.add_argument("--seeds", type=int, default=4000, help="at most for each")
    options = parser.parse_args()
    missed = 0
    print("| | fault | seeds until found | what is seen |\n|---|---|---|---|")
    for id in options.ids:
        number, wrong = seeds_until_found(id, options.seeds)
        missed += not number
        told = wrong.removeprefix("judge.Violation: ").removeprefix("AssertionError: ")
        took = number or f"not in {options.seeds}"
        print(f"| {id} | {MUTANTS[id].fault} | {took} | {told[:80]} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
