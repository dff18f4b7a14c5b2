"""Simulated workers: thin shells around the real protocol logic, good ones and bad ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from fabric.building import agent as worker_side
from fabric.building.agent import WorkerAgent
from fabric.errors import StoreError
from fabric.wire.messages import (
    STORING,
    Desired,
    LogPiece,
    LogWanted,
    Message,
    Outcome,
    Published,
    Rejected,
)

if TYPE_CHECKING:
    from simulator import Simulation

ARCH = "x86_64"

Id = tuple[str, int]
Kind = Literal["good", "sick", "liar", "shy"]


class Builder:
    """One run of a worker that builds nothing, in made-up time, and logs about it."""

    def __init__(
        self,
        world: Simulation,
        name: str,
        node: str,
        kind: Kind,
        slots: int,
        features: tuple[str, ...],
    ) -> None:
        self.world = world
        self.name = name
        self.node = node
        self.kind = kind
        self.alive = True
        self.agent = WorkerAgent(
            name=name, instance=node, arch=ARCH, slots=slots, features=features
        )
        self.logs: dict[Id, bytes] = {}
        self.began: dict[Id, float] = {}  # when
        self._store = world.warehouse.open()
        self._ahead = world.some_clock()
        self._tick()
        if kind == "shy":
            world.at_node(self.node, world.rng.uniform(1.0, 5.0), self._fill_up)

    def hear(self, message: Message) -> None:
        if not self.alive:
            return
        match message:
            case Desired():
                self._do(self.agent.desired(message))
                known = {*self.agent.running, *self.agent.unacked}
                self.logs = {id: log for id, log in self.logs.items() if id in known}
            case LogWanted():
                log = self.logs.get((message.key, message.fence))
                if log is not None:
                    data = log[message.offset : message.offset + message.length]
                    piece = LogPiece(message.key, message.fence, message.offset, data)
                    self.world.to_broker(self.node, piece)
            case Rejected():
                self.world.refused(self, message.reason)

    def stop(self) -> None:
        """A polite end: drain, hand back, and go."""
        if self.alive and not self.agent.draining:
            self._do(self.agent.drain())
            self.world.at_node(self.node, self.world.rng.uniform(1.0, 8.0), self._go)

    def _go(self) -> None:
        if self.alive:
            for id in self.agent.running:
                self._end(id, "cancelled")
            self.world.at_node(self.node, 1.0, partial(self.world.gone, self))

    def _fill_up(self) -> None:
        """Its disk is full for a while."""
        if self.alive and not self.world.peaceful:
            why = "" if self.agent.refusing else "its disk is full"
            if why:
                self.world.inject("disk full", self.node)
            self._do(self.agent.refuse(why))
            self.world.at_node(self.node, self.world.rng.uniform(1.0, 9.0), self._fill_up)
        elif self.alive:
            self._do(self.agent.refuse(""))

    def _tick(self) -> None:
        if not self.alive:
            return
        now = self.world.now + self._ahead
        self._do(self.agent.tick(now))
        self.world.at_node(self.node, max(0.01, self.agent.due - now), self._tick)

    def _do(self, actions: Sequence[worker_side.Action]) -> None:
        for action in actions:
            match action:
                case worker_side.Send():
                    self.world.to_broker(self.node, action.report)
                case worker_side.Start():
                    self._start(action)
                case worker_side.Kill():
                    delay = self.world.rng.choice((0.001, 0.5, 4.0))
                    if delay > 1.0 and self.world.scenario.long:
                        delay = self.world.lasts(delay, delay)
                    self.world.at_node(
                        self.node,
                        delay,
                        partial(self._end, (action.key, action.fence), "cancelled"),
                    )

    def _start(self, action: worker_side.Start) -> None:
        world, rng = self.world, self.world.rng
        world.counts["builds"] += 1
        id = (action.key, action.fence)
        self.logs[id] = b""
        self.began[id] = world.now
        name = world.names[action.key]
        depends = world.graph[action.key].depends
        world.tell(f"{self.node} begins {name} {id[1]}")
        try:
            ready = self._store.manifest(action.key)
            broken = tuple(key for key in depends if not self._store.inspect(key))
            if ready is not None and ready.log is not None:  # somebody was faster
                self._log(id, self._store.read(ready.log).decode())
                world.at_node(self.node, 0.05, partial(self._end, id, "done"))
                return
        except StoreError:
            world.inject("fault without a store", f"{self.node} {name}")
            world.at_node(self.node, 0.05, partial(self._end, id, "fault"))
            return
        if broken:
            world.at_node(self.node, 0.05, partial(self._end, id, "fault", broken))
            return
        seconds = rng.choice((0.0, 0.01, 1.0, 6.0))
        for n in range(rng.randint(0, 3)):
            world.at_node(
                self.node, seconds * n / 4, partial(self._log, id, f"{name} {id[1]} line {n}\n" * 9)
            )
        if name.endswith("-poison"):
            world.at_node(self.node, seconds, partial(world.crash, self))
        else:
            result, damaged = self._how(name, depends)
            if id[1] % 2:
                world.at_node(self.node, seconds * 2 / 3, partial(self._stores, id))
            world.at_node(self.node, seconds, partial(self._end, id, result, damaged))

    def _how(self, name: str, depends: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """How a build ends here, and what is found damaged."""
        world, rng = self.world, self.world.rng
        if self.kind == "sick":
            world.inject("fault", f"{self.node} {name}")
            return "fault", ()
        if self.kind == "shy" and not world.peaceful and rng.random() < 0.5:
            world.inject("refusal", f"{self.node} {name}")
            return "refused", ()
        if self.kind == "liar":
            world.inject("lie", f"{self.node} {name}")
            if depends and rng.random() < 0.8:
                return "fault", tuple(rng.sample(depends, 1))
            return "says done", ()
        return ("failed" if name.endswith("-bad") else "done"), ()

    def _log(self, id: Id, text: str) -> None:
        if not self.alive or id not in self.agent.running:
            return
        offset, data = len(self.logs[id]), text.encode()
        self.logs[id] += data
        self.world.publish(self.node, Published(*id, offset, data))
        self._do(self.agent.progress(*id, phase=f"phase {offset % 3}", log_size=len(self.logs[id])))

    def _stores(self, id: Id) -> None:
        """From now on, the attempt only stores: its slot is free for another."""
        if self.alive and id in self.agent.running:
            self._do(self.agent.progress(*id, phase=STORING, log_size=len(self.logs[id])))

    def _end(self, id: Id, result: str, damaged: tuple[str, ...] = ()) -> None:
        if not self.alive or id not in self.agent.running:
            return
        name, log = self.world.names[id[0]], self.logs[id]
        if result == "done":
            try:
                self.world.warehouse.keep(self._store, id[0], name, log)
            except StoreError:
                self.world.inject("fault without a store", f"{self.node} {name}")
                result = "fault"
            else:
                if (
                    not self.world.peaceful
                    and self.world.rng.random() < self.world.scenario.parting
                ):
                    self.world.at_node(self.node, 0.05, partial(self.world.crash, self))
        if result in ("done", "says done"):
            self.world.done.setdefault(id[0], set()).add(id[1])
        self.world.tell(f"{self.node} ends {name} {id[1]}: {result} {damaged}")
        outcome = {
            "key": id[0],
            "fence": id[1],
            "result": "done" if result == "says done" else result,
            "message": f"{result} on {self.name} in attempt {id[1]}",
            "seconds": 1.0,
            "damaged": damaged,
            "log_size": len(log),
            "log_sha256": hashlib.sha256(log).hexdigest(),
        }
        self._do(self.agent.ended(msgspec.convert(outcome, Outcome)))
