"""Simulated workers and initiators: thin shells around the real protocol logic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fabric.wire import agent as worker_side
from fabric.wire import mirror as initiator_side
from fabric.wire.agent import WorkerAgent
from fabric.wire.messages import (
    Desired,
    LogHint,
    LogPiece,
    LogWanted,
    Message,
    Outcome,
    Refused,
    Submit,
    Update,
)
from fabric.wire.mirror import RequestMirror

if TYPE_CHECKING:
    from simulator import Simulation

ARCH = "x86_64"


class Builder:
    """A worker that builds nothing, in made-up time, and logs about it."""

    def __init__(self, world: Simulation, name: str, node: str, slots: int) -> None:
        self.world = world
        self.name = name
        self.node = node
        self.alive = True
        self.agent = WorkerAgent(name=name, instance=node, arch=ARCH, slots=slots)
        self.logs: dict[tuple[str, int], bytes] = {}
        self.killed: set[tuple[str, int]] = set()
        self._tick()

    def hear(self, message: Message) -> None:
        if not self.alive:
            return
        match message:
            case Desired():
                self._do(self.agent.desired(message))
                known = {*self.agent.running, *self.agent.unsettled}
                self.logs = {id: log for id, log in self.logs.items() if id in known}
            case LogWanted():
                log = self.logs.get((message.key, message.fence))
                if log is not None:
                    data = log[message.offset : message.offset + message.length]
                    piece = LogPiece(message.key, message.fence, message.offset, data)
                    self.world.to_broker(self.node, piece)
            case Refused():
                raise AssertionError(f"{self.node} is refused: {message.reason}")

    def _tick(self) -> None:
        if not self.alive:
            return
        self._do(self.agent.tick(self.world.now))
        self.world.at(max(0.01, self.agent.due - self.world.now), self._tick)

    def _do(self, actions: Sequence[worker_side.Action]) -> None:
        for action in actions:
            match action:
                case worker_side.Send():
                    self.world.to_broker(self.node, action.report)
                case worker_side.Start():
                    self._start(action)
                case worker_side.Kill():
                    id = (action.key, action.fence)
                    self.killed.add(id)
                    delay = self.world.rng.choice((0.001, 0.5, 4.0))
                    self.world.at(delay, partial(self._end, id, "cancelled"))

    def _start(self, action: worker_side.Start) -> None:
        world = self.world
        world.counts["builds"] += 1
        id = (action.key, action.fence)
        if action.key in world.stored:
            world.counts["built again"] += 1
        self.logs[id] = b""
        name = msgspec.msgpack.decode(action.job, type=str)
        seconds = world.rng.choice((0.0, 0.01, 1.0, 6.0))
        for n in range(world.rng.randint(0, 3)):
            world.at(seconds * n / 4, partial(self._log, id, f"{name} {id[1]} line {n}\n" * 9))
        result = "done"
        if name.endswith("-bad"):
            result = "failed"
        elif self.name in world.sick:
            result = "fault"
        if name.endswith("-poison"):
            world.at(seconds, partial(world.crash, self))
        else:
            world.at(seconds, partial(self._end, id, result))

    def _log(self, id: tuple[str, int], text: str) -> None:
        if not self.alive or id not in self.agent.running:
            return
        offset, data = len(self.logs[id]), text.encode()
        self.logs[id] += data
        piece = LogPiece(*id, offset, data)
        world = self.world
        world.send(self.node, "broker", piece, partial(world.log, *id, offset, data))
        self._do(self.agent.progress(*id, phase=f"phase {offset % 3}", log_size=len(self.logs[id])))

    def _end(self, id: tuple[str, int], result: str) -> None:
        if not self.alive or id not in self.agent.running:
            return
        if result == "done":
            self.world.stored.add(id[0])
        log = self.logs[id]
        outcome = {
            "key": id[0],
            "fence": id[1],
            "result": result,
            "message": f"{result} on {self.name}",
            "seconds": 1.0,
            "log_size": len(log),
            "log_sha256": hashlib.sha256(log).hexdigest(),
        }
        self._do(self.agent.ended(msgspec.convert(outcome, Outcome)))


class Initiator:
    """Somebody who wants something built, and keeps its logs."""

    def __init__(self, world: Simulation, node: str, submit: Submit) -> None:
        self.world = world
        self.node = node
        self.mirror = RequestMirror(submit)
        self.gone = False
        self.departed = False
        self.logs: dict[str, bytes] = {}
        self.open: dict[str, int] = {}
        self.whole: dict[str, bool] = {}
        self.over = 0
        self._tick()

    def depart(self, *, politely: bool) -> None:
        """Leave before the end, with or without a word."""
        if politely:
            self._do(self.mirror.leave())
        self.gone = self.departed = True

    def hear(self, message: Message) -> None:
        if self.gone:
            return
        now = self.world.now
        match message:
            case Update():
                self._do(self.mirror.update(message, now))
            case Refused():
                self._do(self.mirror.refused(message, now))
            case LogPiece():
                self._do(self.mirror.piece(message, now))

    def hint(self, key: str, hint: LogHint, data: bytes) -> None:
        if not self.gone:
            self._do(self.mirror.hint(key, hint, data, self.world.now))

    def _tick(self) -> None:
        if self.gone:
            return
        self._do(self.mirror.tick(self.world.now))
        if self.mirror.complete:
            self._do(self.mirror.leave())
            self.gone = True
            return
        self.world.at(min(0.2, max(0.01, self.mirror.due - self.world.now)), self._tick)

    def _do(self, actions: Sequence[initiator_side.Action]) -> None:
        for action in actions:
            match action:
                case initiator_side.Send():
                    self.world.to_broker(self.node, action.message)
                case initiator_side.OpenLog():
                    self.logs[action.key] = b""
                    self.open[action.key] = action.fence
                case initiator_side.AppendLog():
                    assert action.key in self.open, "a log that is not open grows"
                    assert action.offset == len(self.logs[action.key]), "a gap in a log"
                    self.logs[action.key] += action.data
                case initiator_side.CloseLog():
                    assert self.open.pop(action.key) == action.fence
                    self.whole[action.key] = action.whole
                case initiator_side.Over():
                    self.over += 1
                    assert not action.refused, action.message

    def verify(self) -> None:
        """What it was told is true, and its logs are whole."""
        world, mirror = self.world, self.mirror
        about = f"{self.node} of {world.scenario}\n{world.tell()}"
        assert self.over == 1, about
        assert not self.open, about
        failures = {
            world.names[key]: step.message
            for key, step in mirror.steps.items()
            if step.state == "failed"
        }
        if mirror.state == "done":
            assert set(mirror.goals) <= world.stored, about
            assert not failures, about
        else:
            assert mirror.state == "failed", about
            assert failures, about
        for name, message in failures.items():
            if name.endswith("-bad"):
                excused = message.startswith("failed on") or not world.scenario.gentle
            elif name.endswith("-poison"):
                excused = message.startswith("it was lost 3 times") or bool(world.sick)
            else:
                excused = (
                    (message.startswith("it was lost") and world.counts["crashes"] > 2)
                    or (message.startswith("no machine could") and bool(world.sick))
                    or (message.startswith("the artifact store") and world.scenario.outages > 0)
                )
            assert excused, f"{name} failed: {message}\n{about}"
        for key, whole in self.whole.items():
            if whole:
                lines = self.logs[key].decode().splitlines()
                assert all(line.startswith(world.names[key]) for line in lines), about
            else:
                told = f"the log of {world.names[key]} is not whole: {mirror.steps[key]}"
                assert not world.scenario.gentle, told
