"""Virtual time, and a network that loses, delays, repeats, reorders and partitions."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

from scenarios import Scenario

#: Messages of a story that are kept; whatever else happens is all kept.
STORY = 400
#: Seconds after which a message counts as late.
LATE = 1.0


class Network:
    """Nodes are named; all of them talk to the broker only."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.now = 1000.0
        self.peace = self.now + scenario.trouble
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()  # injected, by kind
        self.happened: Counter[str] = Counter()  # of what is rare: see `rare`
        self.trace = hashlib.sha256()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._story: list[tuple[float, int, str]] = []
        self._sent: deque[tuple[float, int, str]] = deque(maxlen=STORY)
        self._cut: dict[tuple[str, bool], float] = {}  # (node, as sender) -> until when
        self._stopped: dict[str, float] = {}  # node -> until when its process stands still
        self._latest: dict[tuple[str, str], int] = {}  # link -> number of its last message there

    def lasts(self, least: float, most: float) -> float:
        """How many seconds a fault lasts: in some scenarios longer than anybody waits."""
        seconds = self.rng.uniform(least, most)
        if self.scenario.long and self.rng.random() < 0.5:
            return self.rng.uniform(1.0, 5.0) * self.scenario.lease
        return seconds

    def some_clock(self) -> float:
        """How many seconds the clock of a machine is ahead: none of two is the same."""
        return self.rng.uniform(0.0, 1e6)

    def rare(self, what: str) -> None:
        """Something happened that does not happen often."""
        self.happened[what] += 1

    @property
    def peaceful(self) -> bool:
        return self.now >= self.peace

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        self._number += 1
        heappush(self._queue, (self.now + delay, self._number, action))

    def at_node(self, node: str, delay: float, action: Callable[[], None]) -> None:
        """Let a process do something after so many seconds, or as soon as it goes on then."""
        self.at(delay, partial(self._go_on, node, action))

    def _go_on(self, node: str, action: Callable[[], None]) -> None:
        left = self._stopped.get(node, 0.0) - self.now
        if left > 0.0:
            self.at_node(node, left, action)
        else:
            action()

    def stop_process(self, node: str, seconds: float) -> None:
        """A process stands still, and what is sent to it waits for it."""
        self.inject("process stopped", f"{node} for {seconds:.1f} s")
        until = min(self.peace, self.now + seconds)
        self._stopped[node] = max(until, self._stopped.get(node, 0.0))

    def step(self) -> bool:
        """Go on to what is next; False if there is nothing."""
        if not self._queue:
            return False
        due, _, action = heappop(self._queue)
        self.now = max(self.now, due)
        self.counts["events"] += 1
        action()
        return True

    def tell(self, line: str) -> None:
        """Write a line of the story."""
        self._number += 1
        self._story.append((self.now, self._number, line))

    def story(self) -> list[str]:
        lines = sorted([*self._story, *self._sent])
        return [f"{at:10.3f}  {line}" for at, _, line in lines]

    def inject(self, kind: str, about: str = "") -> None:
        """Something goes wrong."""
        self.faults[kind] += 1
        self.tell(f"-- {kind} {about}")

    def _message(self, what: str, source: str, target: str, fate: str = "") -> None:
        self._number += 1
        if fate:
            self.faults[fate] += 1
        self._sent.append((self.now, self._number, f"{source} -> {target} {what} {fate}"))

    def cut(self, node: str, seconds: float) -> None:
        """A node can be heard no more, or can hear no more, or both."""
        sides = self.rng.choice(((True,), (False,), (True, False)))
        self.inject("partition" if len(sides) == 2 else "one-way partition", node)
        for side in sides:
            self._cut[node, side] = min(self.peace, self.now + seconds)

    def send(self, source: str, target: str, what: str, deliver: Callable[[], None]) -> None:
        """Deliver a message: maybe late, maybe twice, maybe never, maybe after a later one."""
        self.counts["messages"] += 1
        self._number += 1
        self.trace.update(f"{self.now:.6f} {source} {target} {what}\n".encode())
        times, slow = 1, 0.01
        if not self.peaceful:
            slow = self.scenario.delay
            if self.rng.random() < self.scenario.drop:
                self._message(what, source, target, "dropped")
                return
            if self.rng.random() < self.scenario.repeat:
                self._message(what, source, target, "repeated")
                times = 2
        for _ in range(times):
            delay = self.rng.uniform(0.0005, slow)
            if delay > LATE:
                self.faults["late"] += 1
            arrive = partial(self._arrive, source, target, what, self._number, deliver)
            self.at(delay, arrive)

    def _arrive(
        self, source: str, target: str, what: str, number: int, deliver: Callable[[], None]
    ) -> None:
        if max(self._cut.get((source, True), 0), self._cut.get((target, False), 0)) > self.now:
            self._message(what, source, target, "cut off")
            return
        latest = self._latest.get((source, target), 0)
        if number < latest:
            self.faults["reordered"] += 1
        self._latest[source, target] = max(latest, number)
        self._message(what, source, target)
        self._go_on(target, deliver)
