"""Finds the steps of a request by the names that users call them.

A query costs a few look-ups for each request, however many steps there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator

from fabric.wire.messages import StepSpec, StepState

#: Characters of a key that may stand for the whole key, at least.
PREFIX = 6
#: Characters of a step's name at most, as in `fabric.wire.messages.Name`.
_LONGEST = 255
#: Dashes after the chunk's name in an artifact's name, at most.
_PARTS = 8


class NameQuery:
    """The name, artifact, log or key that a user typed."""

    def __init__(self, about: str) -> None:
        self.exact = (about, f"build-step-{about}.log")
        dashes = (at for at, letter in enumerate(about[: _LONGEST + 1]) if letter == "-")
        # The name of an artifact begins with the name of its chunk.
        self.beginnings = [about[:at] for at in [*dashes][-_PARTS:]]
        self.prefix = about if len(about) >= PREFIX else ""


class StepIndex:
    """All steps of one request."""

    def __init__(self, steps: Collection[StepSpec | StepState]) -> None:
        self._keys = sorted([step.key for step in steps])
        self._logs = {step.log: step.key for step in steps}  # each has a log of its own
        self._names = {step.name: step.key for step in steps}
        self._more: dict[str, list[str]] = {}  # further keys of names that several steps have
        if len(self._names) < len(self._keys):
            for step in steps:
                if self._names[step.name] != step.key:
                    self._more.setdefault(step.name, []).append(step.key)

    def exactly(self, query: NameQuery) -> Iterator[str]:
        """Keys of the steps with exactly this name, log or key."""
        for name in query.exact:
            yield from self._named(name)
            if name in self._logs:
                yield self._logs[name]
        yield from self._with_prefix(query.exact[0], whole=True)

    def similar(self, query: NameQuery) -> Iterator[str]:
        """Keys of the steps that the user may mean."""
        for name in query.beginnings:
            yield from self._named(name)
        if query.prefix:
            yield from self._with_prefix(query.prefix, whole=False)

    def _named(self, name: str) -> Iterator[str]:
        yield from self._more.get(name, ())
        if name in self._names:
            yield self._names[name]

    def _with_prefix(self, prefix: str, *, whole: bool) -> Iterator[str]:
        at = bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            if not whole or self._keys[at] == prefix:
                yield self._keys[at]
            at += 1
