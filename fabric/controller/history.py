"""Remembers the attempts that have ended, also over restarts of the broker.

The loop looks them up in memory.  The journal has a copy, which the next run of the broker loads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import islice

import msgspec

from fabric import bounds
from fabric.scheduling.attempt_list import Scope
from fabric.scheduling.events import Ended
from fabric.scheduling.state import FENCES, FarmState
from fabric.wire.messages import (
    Answer,
    AttemptInfo,
    AttemptResult,
    Count,
    Key,
    Name,
    OutcomeText,
    Phase,
    Query,
    Seconds,
    cut,
)

# Phases are encoded, because there are many attempts.
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[Phase, Seconds], ...]).decode


class EndedAttempt(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """An attempt that has ended.  Times are seconds on the broker's clock."""

    number: Count  # grows, also over restarts of the broker
    key: Key
    fence: Count
    worker: Name
    kind: Name
    name: Name
    arch: Name
    result: AttemptResult
    message: OutcomeText
    took: Seconds  # as its worker says
    began: Seconds
    ended: Seconds
    phases: bytes  # encoded: see `phases_of`


def phases_of(attempt: EndedAttempt) -> tuple[tuple[str, float], ...]:
    """(phase, seconds since the attempt began).  MsgspecError if it is damaged."""
    return _decode(attempt.phases) if attempt.phases else ()


class AttemptHistory:
    """The last `bounds.ATTEMPTS_KEPT` attempts."""

    def __init__(self, epoch: int, restored: Iterable[EndedAttempt] = ()) -> None:
        """``epoch`` of this run; ``restored`` are attempts of former runs, oldest first."""
        self._attempts = deque(restored, bounds.ATTEMPTS_KEPT)
        self._number = epoch * FENCES

    def add(self, event: Ended, now: float) -> EndedAttempt:
        """Remember an attempt that ends now."""
        self._number += 1
        outcome, since = event.outcome, event.since
        result: AttemptResult = "lost"
        message, took, phases = "", 0.0, b""
        if outcome is not None:
            result, message, took = outcome.result, outcome.message, outcome.seconds
            if len(message) > bounds.ATTEMPT_TEXT:
                message = cut(message, bounds.ATTEMPT_TEXT)
        if event.phases:
            phases = _encode([(phase, max(0.0, at - since)) for phase, at in event.phases])
        about = (event.key, event.fence, event.worker, event.kind, event.name, event.arch)
        attempt = EndedAttempt(self._number, *about, result, message, took, since, now, phases)
        self._attempts.append(attempt)
        return attempt

    def complete(self, answer: Answer, query: Query, state: FarmState, now: float) -> Answer:
        """The core's answer to a query for attempts, with those that have ended.

        Those that run come after the last that has ended.
        """
        scope, attempts = Scope(state, query.about), self._attempts
        first = bisect_right(attempts, query.seen, key=lambda each: each.number)
        found = scope.select(islice(attempts, first, None))
        infos = [_info(each, now) for each in found[: bounds.ATTEMPTS_SHOWN]]
        if len(found) <= bounds.ATTEMPTS_SHOWN:
            infos.extend(answer.attempts)
        return msgspec.structs.replace(answer, attempts=tuple(infos))


def _info(attempt: EndedAttempt, now: float) -> AttemptInfo:
    return AttemptInfo(
        key=attempt.key,
        fence=attempt.fence,
        name=attempt.name or attempt.key[:12],
        kind=attempt.kind,
        worker=attempt.worker,
        ago=now - attempt.began,
        seconds=attempt.ended - attempt.began,
        number=attempt.number,
        result=attempt.result,
        message=attempt.message,
        phases=phases_of(attempt),
    )
