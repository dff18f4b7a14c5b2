"""Faults of a farm: how each is caused and repaired."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from farm import LEASE, Farm
from hosts import Host
from people import User
from services import PATIENCE, Service

Undo = Callable[[], object]
Fault = Callable[[], bool]

#: So many faults include each kind.
ENOUGH = 60
#: Seconds that a program is stopped with its children: longer than a lease, and than the time until
#: its peers connect again.
STANDSTILL = 3 * LEASE
#: The same for a user's command: longer than the broker waits for its messages.
ABSENCE = 20.0
#: Seconds that the store takes to answer, and a disk stays full, when they take long.
SLUGGISH = 20.0
FULL = 60.0
#: Seconds that a program has to end: more than in the units, since the machine is busy.
ENDING = 2 * PATIENCE
#: Seconds until the wall clock of a replacement machine is set.
UNSET = 30.0
#: Seconds that other machines have been up.
UPTIMES = (1, 100, 300 * 86400)


class Faults:
    """Causes a fault at random on each call, and repairs it some seconds later.

    Kinds are drawn like cards of a deck, so that `ENOUGH` faults have each of them.
    """

    def __init__(self, farm: Farm, users: Sequence[User], random: random.Random) -> None:
        self.farm = farm
        self.users = users
        self.random = random
        self.undone: list[tuple[float, str, Undo]] = []  # due, what is broken, how to mend it
        self.count: collections.Counter[str] = collections.Counter()
        self.deck = self._deck()
        self._drawn: list[tuple[str, Fault]] = []

    def _deck(self) -> list[tuple[str, Fault]]:
        """`ENOUGH` cards: each kind, and how it is done, as often as it is to happen."""
        farm, services = self.farm, self.farm.supervisor.services
        kinds: list[tuple[str, int, Fault]] = [
            ("kill initiator", 5, self.leave),
            ("crash", 5, self.crash),
            ("cut", 5, self.cut),
            ("slow", 5, self.slow),
            ("fill", 4, self.fill),
            ("gag", 3, self.gag),
            ("jump", 4, self.jump),
            ("hang", 4, self.hang),
            ("restart broker", 1, partial(self.restart, services["broker"])),
            ("restart worker", 1, lambda: self.restart(services[self._worker().name])),
            *((f"stop {name}", 1, partial(self.stop, services[name], STANDSTILL))
              for name in ("broker", "nginx", "sshd")),
            ("stop worker", 2, lambda: self.stop(services[self._worker().name], STANDSTILL)),
            ("stop initiator", 1, self.pause),
            ("sluggish store", 1, partial(self.stop, services["nginx"], SLUGGISH)),
            ("full controller", 1, partial(self.full, farm.controller)),
            ("full trove", 1, partial(self.full, farm.trove)),
            ("full worker", 1, lambda: self.full(self._worker())),
            ("reboot controller", 1, partial(self.reboot, farm.controller)),
            ("reboot worker", 1, lambda: self.reboot(self._worker())),
            ("replace controller", 1, partial(self.replace, farm.controller)),
            ("replace worker", 2, lambda: self.replace(self._worker())),
        ]  # fmt: skip
        cards = [(kind, fault) for kind, number, fault in kinds for _ in range(number)]
        return cards + [("kill", self.kill)] * (ENOUGH - len(cards))

    def one(self) -> None:
        """Cause a fault, unless all that is left of the deck is broken already."""
        if not self._drawn:
            self._drawn = self.deck.copy()
            self.random.shuffle(self._drawn)
        for number, (kind, fault) in enumerate(self._drawn):
            if fault():
                self.count[kind] += 1
                del self._drawn[number]
                return

    def missing(self) -> list[str]:
        """The kinds that never happened, if there were faults enough for all."""
        if self.count.total() < ENOUGH:
            return []
        return sorted({kind for kind, _ in self.deck} - self.count.keys())

    def mend(self, now: float) -> None:
        """Repair faults that are due."""
        for each in [each for each in self.undone if each[0] <= now]:
            self.undone.remove(each)
            each[2]()

    def _say(self, what: str, whom: str) -> bool:
        print(f"{time.monotonic():9.1f} {what} {whom}", flush=True)
        return True

    def _later(self, seconds: float, broken: str, action: Undo) -> None:
        self.undone.append((time.monotonic() + seconds, broken, action))

    def _broken(self, what: str) -> bool:
        return any(broken == what for _, broken, _ in self.undone)

    def _worker(self) -> Host:
        return self.random.choice(self.farm.workers)

    # -- kinds: each returns whether it has happened ---------------------------------------------

    def kill(self) -> bool:
        """Kill a program of the farm; systemd starts it again."""
        name = self.random.choice(list(self.farm.supervisor.services))
        service = self.farm.supervisor.services[name]
        return service.signal(signal.SIGKILL) and self._say("kill", name)

    def leave(self) -> bool:
        """Kill a user's command; the user types it again, or attaches from another host."""
        user = self.random.choice(self.users)
        return user.killed() and self._say("kill initiator of", user.name)

    def crash(self) -> bool:
        """Kill everything on a host; its disk stays."""
        host = self.random.choice([*self.farm.workers, self.farm.controller, self.farm.trove])
        self._end_all(host)
        return self._say("crash", host.name)

    def _end_all(self, host: Host) -> None:
        for pid in host.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reboot(self, host: Host) -> bool:
        """Crash a host, and restart its monotonic clock."""
        self._end_all(host)
        host.boot(UPTIMES[0])
        return self._say("reboot", host.name)

    def replace(self, host: Host) -> bool:
        """Move a host's disk into another machine, whose clocks all differ."""
        if self._broken(f"clock of {host.name}"):
            return False
        self._end_all(host)
        uptime = self.random.choice(UPTIMES)
        host.boot(uptime)
        host.clock(self.random.choice(["+400d", "-400d"]))
        self._later(UNSET, f"clock of {host.name}", lambda: host.clock("+0"))
        return self._say(f"other machine, up for {uptime} s:", host.name)

    def hang(self) -> bool:
        """Stop a program for a while."""
        services = self.farm.supervisor.services
        name = self.random.choice(list(services))
        if self._broken(name) or not services[name].signal(signal.SIGSTOP):
            return False
        process = services[name].process
        assert process is not None
        # the process may have ended by then
        self._later(self.random.uniform(0.5, 6), name, lambda: process.send_signal(signal.SIGCONT))
        return self._say("hang", name)

    def stop(self, service: Service, seconds: float) -> bool:
        """Stop a program with its descendants, for long."""
        if self._broken(service.name) or (stopped := service.stop()) is None:
            return False
        self._later(seconds, service.name, stopped.go_on)
        return self._say(f"stop for {seconds:.0f} s {len(stopped)} processes of", service.name)

    def pause(self) -> bool:
        """Stop a user's command until the broker takes it for ended, and continue it."""
        user = self.random.choice(self.users)
        if self._broken(f"command of {user.name}") or (stopped := user.stop()) is None:
            return False
        self._later(ABSENCE, f"command of {user.name}", stopped.go_on)
        return self._say("stop initiator of", user.name)

    def restart(self, service: Service) -> bool:
        """Ask a program to end, as for an upgrade."""
        if self._broken(service.name) or (kill := service.end()) is None:
            return False
        self._later(ENDING, service.name, kill)
        return self._say("restart", service.name)

    def cut(self) -> bool:
        """Disconnect a host."""
        host = self.random.choice(self.farm.hosts)
        if self._broken(f"cable of {host.name}"):
            return False
        host.cut()
        self._later(self.random.uniform(0.5, 8), f"cable of {host.name}", host.mend)
        return self._say("cut", host.name)

    def slow(self) -> bool:
        """Make a host's link slow, with lost packets."""
        host = self.random.choice(self.farm.hosts)
        if self._broken(f"link of {host.name}"):
            return False
        host.slow(self.random.choice(["200kbit", "1mbit"]))
        self._later(self.random.uniform(1, 6), f"link of {host.name}", host.hasten)
        return self._say("slow", host.name)

    def gag(self) -> bool:
        """The controller's disk has no room left, so it promises nothing; it may be killed then."""
        seconds = self.random.uniform(2, 6)
        if not self._fill(self.farm.controller, seconds):
            return False
        broker = self.farm.supervisor.services["broker"]
        if self.random.random() < 0.5:
            at = self.random.uniform(0.5, seconds)
            self._later(at, "the broker of a full disk", lambda: broker.signal(signal.SIGKILL))
        return True

    def fill(self) -> bool:
        """Fill a disk."""
        host = self.random.choice([*self.farm.workers, self.farm.trove])
        return self._fill(host, self.random.uniform(1, 5))

    def full(self, host: Host) -> bool:
        """Fill a disk for long."""
        return self._fill(host, FULL)

    def _fill(self, host: Host, seconds: float) -> bool:
        if self._broken(f"disk of {host.name}"):
            return False
        host.fill()
        self._later(seconds, f"disk of {host.name}", host.empty)
        return self._say(f"fill for {seconds:.0f} s", host.name)

    def jump(self) -> bool:
        """Set a clock wrong by a day."""
        host = self.random.choice(self.farm.hosts)
        if self._broken(f"clock of {host.name}"):
            return False
        host.clock(self.random.choice(["+1d", "-1d"]))
        self._later(self.random.uniform(2, 10), f"clock of {host.name}", lambda: host.clock("+0"))
        return self._say("jump", host.name)
