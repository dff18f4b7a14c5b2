"""Builds to draw: graphs of real definitions, and what a farm would do with them."""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from oracle_systems import definitions, rows

from fabric.definitions.graph import Graph, Step
from fabric.definitions.load import load
from fabric.web.asks import Heard
from fabric.wire.messages import (
    AttemptInfo,
    GraphStep,
    RequestInfo,
    StepState,
    Update,
)

ROOT = Path(__file__).parents[2]
ID = "0123456789abcdef0123456789abcdef"
PHASES = (("fetch", 0.0), ("configure", 0.05), ("build", 0.25), ("install", 0.85), ("store", 0.93))


def steps_of(graph: Graph) -> tuple[GraphStep, ...]:
    """The steps of a graph as the broker lists them, each needing what it must have staged."""
    place = {step.id: number for number, step in enumerate(graph.steps)}

    def depends(step: Step) -> Iterable[str]:
        if step.kind == "chunk":
            return step.staged
        if step.kind == "stratum":
            return (chunk for content in step.lists.values() for chunk, _ in content)
        return (chunk for node, name in step.contents for chunk, _ in graph[node].lists[name])

    return tuple(
        GraphStep(
            key=hashlib.sha256(step.id.encode()).hexdigest(),
            name=step.name,
            kind=step.kind,
            depends=tuple(dict.fromkeys(place[one] for one in depends(step))),
        )
        for step in graph.steps
    )


@functools.cache
def gnome() -> tuple[GraphStep, ...]:
    """The largest real system that we know: 452 chunks in 50 strata."""
    row = max((row for row in rows() if row["ok"]), key=lambda row: len(row["chunks"]))
    return steps_of(load(definitions(row).get, row["file"]))


@functools.cache
def build_system() -> tuple[GraphStep, ...]:
    """The system of this repository that builds systems."""

    def read(path: str) -> bytes | None:
        file = ROOT / path
        return file.read_bytes() if file.is_file() else None

    graph = load(read, "systems/build-system-debian-x86_64.morph")
    return steps_of(graph)


class Build:
    """What a farm of some slots has done with a graph after some seconds."""

    def __init__(
        self,
        steps: Sequence[GraphStep],
        *,
        after: float,
        workers: int = 4,
        slots: int = 4,
        cached: Iterable[int] = (),
        failing: Iterable[int] = (),
        lost: Iterable[int] = (),
        seed: int = 1,
    ) -> None:
        """Numbers of steps that are cached, fail, or lose their first worker."""
        choice = random.Random(seed)
        self.steps = steps
        self.after = after
        self.cached = frozenset(cached)
        self.length = [choice.lognormvariate(3.4, 1.0) for _ in steps]
        self.attempts: list[AttemptInfo] = []
        self.states: dict[int, StepState] = {}
        free = [f"worker{number}" for number in range(workers) for _ in range(slots)]
        self._run(free, frozenset(failing), set(lost))

    def _run(self, free: list[str], failing: frozenset[int], lost: set[int]) -> None:
        missing = [set(step.depends) - self.cached for step in self.steps]
        dependents: list[list[int]] = [[] for _ in self.steps]
        for number, its in enumerate(missing):
            for one in its:
                dependents[one].append(number)
        ready = [
            number for number, its in enumerate(missing) if not its and number not in self.cached
        ]
        running: list[tuple[float, int, str, float, str]] = []
        done: set[int] = set()
        failed: set[int] = set()
        clock, fence, count = 0.0, 0, 0
        while clock <= self.after:
            while ready and free:
                number, worker = ready.pop(0), free.pop(0)
                length, result = self.length[number], "done"
                if number in lost:
                    lost.discard(number)
                    length, result = length / 3, "lost"
                elif number in failing:
                    length, result = length / 2, "failed"
                heapq.heappush(running, (clock + length, number, worker, clock, result))
            if not running or running[0][0] > self.after:
                break
            clock, number, worker, began, result = heapq.heappop(running)
            fence, count = fence + 1, count + 1
            self.attempts.append(self._attempt(number, worker, began, clock, result, count))
            free.append(worker)
            if result == "lost":
                ready.append(number)
            elif result == "failed":
                failed.add(number)
            else:
                done.add(number)
                for one in dependents[number]:
                    missing[one].discard(number)
                    if not missing[one]:
                        ready.append(one)
        for _, number, worker, began, _ in sorted(running):
            self.attempts.append(self._attempt(number, worker, began, self.after, "", 0))
        self._describe(done, failed, ready)

    def _attempt(
        self, number: int, worker: str, began: float, ended: float, result: str, count: int
    ) -> AttemptInfo:
        step, length = self.steps[number], self.length[number]
        phases = [(name, part * length) for name, part in PHASES if part * length <= ended - began]
        return AttemptInfo(
            key=step.key,
            fence=count or 1_000_000 + number,
            name=step.name,
            kind=step.kind,
            worker=worker,
            ago=self.after - began,
            seconds=ended - began,
            number=count,
            result=result,  # type: ignore[arg-type]
            message={"lost": "its worker is lost", "failed": "make: *** [all] Error 2"}.get(
                result, ""
            ),
            phases=tuple(phases),
        )

    def _describe(self, done: set[int], failed: set[int], ready: list[int]) -> None:
        last = {attempt.key: attempt for attempt in self.attempts}
        for number, step in enumerate(self.steps):
            attempt = last.get(step.key)
            state = "waiting"
            for name, its in (
                ("cached", self.cached), ("done", done), ("failed", failed), ("ready", ready)
            ):  # fmt: skip
                if number in its:
                    state = name
            running = attempt is not None and not attempt.result
            self.states[number] = StepState(
                step.key,
                "running" if running else state,  # type: ignore[arg-type]
                name=step.name,
                kind=step.kind,
                worker=attempt.worker if attempt else "",
                phase=attempt.phases[-1][0] if attempt and running else "",
                running_for=attempt.seconds if attempt and running else 0.0,
                expected=0.0 if number in self.cached else self.length[number],
                seconds=attempt.seconds if attempt and not running else 0.0,
                fence=attempt.fence if attempt else 0,
            )

    @property
    def update(self) -> Update:
        states = {state.state for state in self.states.values()}
        over = not states & {"waiting", "ready", "running"}
        return Update(
            request=ID,
            version=1,
            state="done" if over else "building",
            steps=tuple(self.states.values()),
            left=0.0 if over else sum(self.length) / 16 - self.after / 2,
            title="gnome-system-x86_64 for alice",
            goals=(self.steps[-1].key,),
        )

    @property
    def info(self) -> RequestInfo:
        tally: dict[str, int] = {}
        for state in self.states.values():
            tally[state.state] = tally.get(state.state, 0) + 1
        update = self.update
        return RequestInfo(
            request=ID,
            title=update.title,
            requester="alice",
            state=update.state,
            since=self.after + 3,
            done=tally.get("done", 0),
            cached=tally.get("cached", 0),
            total=len(self.steps),
            running=tally.get("running", 0),
            failed=tally.get("failed", 0),
            left=update.left,
        )


class Told:
    """Answers the queries of pages from a build, as `fabric.web.farm.Farm` does."""

    error = ""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.asked: list[tuple[str, str, int]] = []

    async def query(self, what: str, about: str = "", seen: int = 0) -> Heard:
        self.asked.append((what, about, seen))
        build = self.build
        if what == "requests":
            return Heard("", requests=(build.info,))
        if what == "update":
            return Heard("", update=build.update)
        if what == "graph":
            return Heard("", graph=tuple(build.steps))
        if what == "attempts":
            ended = [one for one in build.attempts if one.number > seen]
            running = [one for one in build.attempts if not one.number]
            return Heard("", attempts=tuple(ended[:1000] if len(ended) > 1000 else ended + running))
        return Heard("")
