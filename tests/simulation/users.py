"""Simulated users: those who want something built, those who watch, and the operator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, get_args

from core_kit import contents

from fabric.client import request_logs
from fabric.client.request import OVER, Action, Over, RequestMirror
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    LogPiece,
    Message,
    Published,
    Query,
    QueryKind,
    Rejected,
    Update,
)

if TYPE_CHECKING:
    from brokers import Run
    from simulator import Simulation


class Initiator:
    """Somebody who follows a request, and keeps its logs."""

    def __init__(self, world: Simulation, node: str, wanted: BuildOrder | BuildGraph | str) -> None:
        self.world = world
        self.node = node
        self.mirror = RequestMirror(wanted)
        self.gone = False
        self.departed = False
        self.refused = ""  # the request is not known, and why
        self.logs: dict[str, bytes] = {}
        self.open: dict[str, int] = {}
        self.deaf: set[str] = set()  # logs that are not followed on the stream
        self.closed: dict[str, request_logs.CloseLog] = {}
        self.over = 0
        self.since = self.until = world.now
        self._ahead = world.some_clock()
        self._tick()

    @property
    def attached(self) -> bool:
        """It follows what somebody else asked for."""
        return self.mirror.wanted is None

    @property
    def detached(self) -> bool:
        return self.mirror.wanted is not None and self.mirror.wanted.detach

    def depart(self, *, politely: bool) -> None:
        """Leave before the end, with or without a word."""
        if politely:
            self._do(self.mirror.leave())
        self.gone = self.departed = True

    def hear(self, message: Message) -> None:
        if self.gone:
            return
        now = self.clock()
        match message:
            case Update():
                if message.state in OVER and self.open:
                    self.world.rare("a request ends while its logs are open")
                self._do(self.mirror.update(message, now))
            case Rejected():
                self._do(self.mirror.rejected(message, now))
            case LogPiece():
                self._do(self.mirror.piece(message, now))

    def read(self, piece: Published) -> None:
        if not self.gone and piece.key not in self.deaf:
            self._do(self.mirror.published(piece, self.clock()))

    def clock(self) -> float:
        """Monotonic seconds on its machine."""
        return self.world.now + self._ahead

    def _tick(self) -> None:
        if self.gone:
            return
        self._do(self.mirror.tick(self.clock()))
        if self.mirror.complete:
            self._do(self.mirror.leave())
            self.gone = True
            self.until = self.world.now
            return
        self.world.at_node(
            self.node, min(0.2, max(0.01, self.mirror.due - self.clock())), self._tick
        )

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case request_logs.Send():
                    self.world.to_broker(self.node, action.message)
                case request_logs.OpenLog():
                    self.logs[action.key] = b""
                    self.deaf.discard(action.key)
                    self.open[action.key] = action.fence
                case request_logs.AppendLog():
                    assert action.key in self.open, "a log that is not open grows"
                    assert action.offset == len(self.logs[action.key]), "a gap in a log"
                    self.logs[action.key] += action.data
                case request_logs.Follow(key, True):
                    self.deaf.discard(key)
                case request_logs.Follow(key):
                    self.deaf.add(key)
                case request_logs.CloseLog():
                    assert self.open.pop(action.key) == action.fence
                    self.closed[action.key] = action
                    if not action.whole:
                        self.world.rare("a log is not whole")
                case Over():
                    self.over += 1
                    self.world.tell(f"{self.node} is told: {action.state} {action.message}")
                    if action.rejected:
                        assert self.attached, action.message
                        self.refused = action.message
                    else:
                        self.world.told.setdefault(self.mirror.request, set()).add(action.state)


class Viewer:
    """Asks the broker between any two events, outside of time and network: nothing changes.

    Its choices are its own, so that a scenario is played the same with it and without.
    """

    #: Events of which one is followed by a comparison of all that the core knows.
    COMPARED = 60

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self._rng = random.Random(f"viewer {world.scenario.seed}")
        self.answered = 0

    def look(self, run: Run) -> None:
        """Ask something."""
        rng, state = self._rng, run.scheduler.state
        abouts = ["", "no such thing", *self.world.names, *self.world.wishes, *state.workers]
        query = Query(
            PROTOCOL,
            "look",
            rng.choice(get_args(QueryKind)),
            rng.choice(abouts),
            rng.choice((0, state.versions - rng.randrange(20), state.fence)),
        )
        before = contents(state) if rng.randrange(self.COMPARED) == 0 else None
        answer = run.answer(query)
        assert "internal error" not in answer.error, answer.error
        self.answered += len(answer.attempts) + len(answer.graph) + (answer.update is not None)
        if before is not None:
            assert contents(state) == before, f"{query} changes the core"


class Console:
    """An operator: says and asks things until they are answered."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.node = "console"
        self._open: dict[str, Command | Query] = {}
        self._count = 0

    def command(self, what: str, about: str) -> None:
        self._ask(Command(PROTOCOL, self._next(), what, about))  # type: ignore[arg-type]

    def query(self, what: str, about: str = "") -> None:
        self._ask(Query(PROTOCOL, self._next(), what, about))  # type: ignore[arg-type]

    @property
    def idle(self) -> bool:
        return not self._open

    def hear(self, message: Message) -> None:
        if isinstance(message, Answer) and message.id in self._open:
            asked = self._open.pop(message.id)
            self.world.tell(f"console: {asked.what} {asked.about}: {message.error or 'answered'}")
            self.world.answered(asked, message)

    def _next(self) -> str:
        self._count += 1
        return f"question {self._count}"

    def _ask(self, message: Command | Query) -> None:
        self._open[message.id] = message
        self._repeat(message)

    def _repeat(self, message: Command | Query) -> None:
        if message.id in self._open:
            self.world.to_broker(self.node, message)
            self.world.at_node(self.node, 1.0, partial(self._repeat, message))
