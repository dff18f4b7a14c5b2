"""A request mirror with a scripted broker, and the file of its log."""

import hashlib

import msgspec

from fabric.client.request import RequestMirror
from fabric.client.request_logs import AppendLog, CloseLog, Follow, OpenLog, Send
from fabric.wire.messages import (
    PROTOCOL,
    BuildGraph,
    BuildOrder,
    LogPiece,
    LogRead,
    Published,
    RequestState,
    StepState,
    Update,
)

KEY = "a" * 64
TEXT = b"one\ntwo\nthree\n"


GRAPH = BuildGraph(PROTOCOL, "r1", "a test", (), ())
ORDER = BuildOrder(PROTOCOL, "r1", "an order", "refs/builds/me/r1", "c" * 40, "systems/a.morph")
DETACHED = msgspec.structs.replace(ORDER, detach=True)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Tale:
    """A request mirror with a scripted broker, and the file of its log."""

    def __init__(self, wanted: BuildOrder | BuildGraph | str = GRAPH) -> None:
        self.mirror = RequestMirror(wanted)
        self.now = 0.0
        self.version = 0
        self.sent: list[object] = []
        self.file: bytes | None = None
        self.closed: bool | None = None
        self.follows: list[bool] = []  # `Follow` actions

    def do(self, actions: list[object]) -> list[object]:
        rest = []
        for action in actions:
            match action:
                case Send():
                    self.sent.append(action.message)
                case OpenLog():
                    self.file, self.closed = b"", None
                case AppendLog():
                    assert self.file is not None
                    assert action.offset == len(self.file)
                    self.file += action.data
                case Follow():
                    self.follows.append(action.on)
                case CloseLog():
                    self.closed = action.whole
                case _:
                    rest.append(action)
        return rest

    def tick(self, seconds: float = 0.0) -> list[object]:
        self.now += seconds
        return self.do([*self.mirror.tick(self.now)])

    def update(
        self, *steps: StepState, state: RequestState = "building", message: str = ""
    ) -> list[object]:
        self.version += 1
        update = Update("r1", self.version, state, steps, message=message)
        return self.do([*self.mirror.update(update, self.now)])

    def running(self, fence: int = 1, log_size: int = 0) -> list[object]:
        return self.update(StepState(KEY, "running", fence=fence, log_size=log_size))

    def done(self, log: bytes = TEXT, fence: int = 1) -> list[object]:
        return self.update(
            StepState(KEY, "done", fence=fence, log_size=len(log), log_sha256=sha(log)),
            state="done",
        )

    def hint(self, offset: int, data: bytes, fence: int = 1) -> None:
        self.do([*self.mirror.published(Published(KEY, fence, offset, data), self.now)])

    def piece(
        self,
        offset: int,
        data: bytes,
        *,
        fence: int = 1,
        size: int = -1,
        sha256: str = "",
        ended: bool = False,
    ) -> None:
        piece = LogPiece(KEY, fence, offset, data, size, sha256, ended)
        self.do([*self.mirror.piece(piece, self.now)])

    def asked(self) -> list[int]:
        """Offsets of the ranges requested since the last call."""
        found = [each.offset for each in self.sent if isinstance(each, LogRead)]
        self.sent = [each for each in self.sent if not isinstance(each, LogRead)]
        return found
