"""What can be broken in a farm, how, and how it is mended."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from farm import Farm
from people import User

Undo = Callable[[], object]


class Faults:
    """Breaks something at random, when told to, and mends it some seconds later."""

    def __init__(self, farm: Farm, users: Sequence[User], random: random.Random) -> None:
        self.farm = farm
        self.users = users
        self.random = random
        self.undone: list[tuple[float, str, Undo]] = []  # due, what, how
        self.count: collections.Counter[str] = collections.Counter()

    def one(self) -> None:
        """Break something, unless what the dice say is broken already."""
        kinds = [self.kill, self.kill, self.kill, self.leave, self.crash, self.cut, self.slow,
                 self.fill, self.gag, self.jump, self.hang]  # fmt: skip
        self.random.choice(kinds)()

    def mend(self, now: float) -> None:
        """Mend what is due."""
        for each in [each for each in self.undone if each[0] <= now]:
            self.undone.remove(each)
            each[2]()

    def _did(self, kind: str, whom: str, seconds: float = 0.0, undo: Undo | None = None) -> None:
        self.count[kind] += 1
        print(f"{time.monotonic():9.1f} {kind} {whom}", flush=True)
        if undo is not None:
            self._later(seconds, kind, whom, undo)

    def _later(self, seconds: float, kind: str, whom: str, action: Undo) -> None:
        self.undone.append((time.monotonic() + seconds, f"{kind} {whom}", action))

    def _busy(self, kind: str, whom: str) -> bool:
        return any(what == f"{kind} {whom}" for _, what, _ in self.undone)

    def kill(self) -> None:
        """A program of the farm, by SIGKILL; systemd starts it again."""
        name = self.random.choice(list(self.farm.supervisor.services))
        if self.farm.supervisor.services[name].signal(signal.SIGKILL):
            self._did("kill", name)

    def leave(self) -> None:
        """A user's command, by SIGKILL; the user types it again, or attaches from elsewhere."""
        user = self.random.choice(self.users)
        if user.killed():
            self._did("kill initiator of", user.name)

    def crash(self) -> None:
        """Everything on a host at once; what is on its disk stays."""
        host = self.random.choice([*self.farm.workers, self.farm.controller, self.farm.trove])
        for pid in host.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._did("crash", host.name)

    def hang(self) -> None:
        """A program stops for a while, and goes on as if nothing had been."""
        services = self.farm.supervisor.services
        name = self.random.choice(list(services))
        if not self._busy("hang", name) and services[name].signal(signal.SIGSTOP):
            process = services[name].process
            assert process is not None
            self._did(
                "hang",
                name,
                self.random.uniform(0.5, 6),
                lambda: process.send_signal(signal.SIGCONT),  # which nobody may be there to hear
            )

    def cut(self) -> None:
        """A host's cable is pulled."""
        host = self.random.choice(self.farm.hosts)
        if not self._busy("cut", host.name):
            host.cut()
            self._did("cut", host.name, self.random.uniform(0.5, 8), host.mend)

    def slow(self) -> None:
        """A host's link gets slow, and loses what does not fit."""
        host = self.random.choice(self.farm.hosts)
        if not self._busy("slow", host.name):
            host.slow(self.random.choice(["200kbit", "1mbit"]))
            self._did("slow", host.name, self.random.uniform(1, 6), host.hasten)

    def gag(self) -> None:
        """The controller's disk has no room left, so it promises nothing; it may be killed then."""
        host = self.farm.controller
        if self._busy("gag", host.name):
            return
        host.fill()
        seconds = self.random.uniform(2, 6)
        self._did("gag", host.name, seconds, host.empty)
        broker = self.farm.supervisor.services["broker"]
        if self.random.random() < 0.5:
            at = self.random.uniform(0.5, seconds)
            self._later(at, "kill gagged", "broker", lambda: broker.signal(signal.SIGKILL))

    def fill(self) -> None:
        """A disk has no room left."""
        host = self.random.choice([*self.farm.workers, self.farm.trove])
        if not self._busy("fill", host.name):
            host.fill()
            self._did("fill", host.name, self.random.uniform(1, 5), host.empty)

    def jump(self) -> None:
        """A clock is wrong by a day."""
        host = self.random.choice(self.farm.hosts)
        if not self._busy("jump", host.name):
            host.clock(self.random.choice(["+1d", "-1d"]))
            self._did("jump", host.name, self.random.uniform(2, 10), lambda: host.clock("+0"))
