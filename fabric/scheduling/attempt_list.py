"""Lists the attempts of a request, at a step, or on a worker."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator
from itertools import chain
from typing import Protocol, TypeVar

from fabric.scheduling.model import Attempt, LostWorker, Request, Worker
from fabric.scheduling.requests import find_requests
from fabric.scheduling.state import FarmState
from fabric.wire.messages import AttemptInfo

_KEY = re.compile("[0-9a-f]{64}")


class Ended(Protocol):
    """An attempt that has ended.  Times are those of the core."""

    @property
    def key(self) -> str: ...
    @property
    def worker(self) -> str: ...
    @property
    def began(self) -> float: ...
    @property
    def ended(self) -> float: ...


Past = TypeVar("Past", bound=Ended)


class Scope:
    """The attempts that a query is about.

    ``about`` is a request, or the beginning of its id; a key; the name of a worker; or "" for all.
    """

    def __init__(self, state: FarmState, about: str) -> None:
        self._key = about if _KEY.fullmatch(about) else ""
        self._request: Request | None = None
        if about and not self._key and about not in state.workers:
            requests = find_requests(state, about)
            self._request = requests[0] if len(requests) == 1 else None
        self._worker = "" if self._key or self._request else about

    def select(self, attempts: Iterable[Past]) -> list[Past]:
        """Those of some ended attempts that are in it, in their order.

        Those of a request are at one of its steps, and ran while it was not over.
        """
        if self._worker:
            return [one for one in attempts if one.worker == self._worker]
        if self._key:
            return [one for one in attempts if one.key == self._key]
        request = self._request
        if request is None:
            return list(attempts)
        keys: Container[str] = request.results if request.over else request.specs
        until = request.ended if request.over else math.inf
        return [
            one
            for one in attempts
            if one.key in keys and one.ended >= request.since and one.began <= until
        ]

    def has(self, attempt: Attempt) -> bool:
        """Whether an attempt that runs is in it."""
        if self._worker:
            return attempt.worker == self._worker
        if self._key:
            return attempt.key == self._key
        request = self._request
        if request is None:
            return True
        if request.over:
            return attempt.key in request.results and attempt.since <= request.ended
        return attempt.key in request.specs


def running(state: FarmState, scope: Scope, now: float) -> Iterator[AttemptInfo]:
    """The attempts in a scope that workers hold."""
    workers: Iterable[Worker | LostWorker]
    workers = chain(state.workers.values(), state.lost_workers.values())
    for worker in workers:
        for attempt in worker.held.values():
            if scope.has(attempt):
                yield _info(state, attempt, now)


def _info(state: FarmState, attempt: Attempt, now: float) -> AttemptInfo:
    since, spec = attempt.since, attempt.spec
    message = ""
    if attempt.cancelling:
        message = "no build wants it any more"
    elif attempt.worker not in state.workers:
        message = "its worker is lost, and may come back"
    return AttemptInfo(
        key=attempt.key,
        fence=attempt.fence,
        name=spec.name if spec else attempt.key[:12],
        kind=spec.kind if spec else "",
        worker=attempt.worker,
        ago=now - since,
        seconds=now - since,
        message=message,
        phases=tuple([(phase, max(0.0, at - since)) for phase, at in attempt.phases]),
    )
