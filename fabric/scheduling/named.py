"""The steps of a request by what users call them, so that a question costs no look at them all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator

from fabric.wire.messages import StepSpec, StepState

#: This much of a key may stand for the whole.
PREFIX = 6
#: Characters of a step's name at most, as in `fabric.wire.messages.Name`.
_LONGEST = 255
#: Dashes in what an artifact's name has after its chunk's, at most.
_PARTS = 8


class Called:
    """What a user calls a step: its name, artifact, log or key; or something like it."""

    def __init__(self, about: str) -> None:
        self.exact = (about, f"build-step-{about}.log")
        dashes = (at for at, letter in enumerate(about[: _LONGEST + 1]) if letter == "-")
        # An artifact begins as its chunk.  Each is looked for in every request.
        self.beginnings = [about[:at] for at in [*dashes][-_PARTS:]]
        self.prefix = about if len(about) >= PREFIX else ""


class Index:
    """All steps of one request."""

    def __init__(self, steps: Collection[StepSpec | StepState]) -> None:
        self._keys = sorted([step.key for step in steps])
        self._logs = {step.log: step.key for step in steps}  # each has a log of its own
        self._names = {step.name: step.key for step in steps}
        self._more: dict[str, list[str]] = {}  # keys of names that are those of several steps
        if len(self._names) < len(self._keys):
            for step in steps:
                if self._names[step.name] != step.key:
                    self._more.setdefault(step.name, []).append(step.key)

    def exactly(self, called: Called) -> Iterator[str]:
        """Keys of the steps that are called just so."""
        for name in called.exact:
            yield from self._named(name)
            if name in self._logs:
                yield self._logs[name]
        yield from self._like(called.exact[0], whole=True)

    def similar(self, called: Called) -> Iterator[str]:
        """Keys of the steps that may be meant."""
        for name in called.beginnings:
            yield from self._named(name)
        if called.prefix:
            yield from self._like(called.prefix, whole=False)

    def _named(self, name: str) -> Iterator[str]:
        yield from self._more.get(name, ())
        if name in self._names:
            yield self._names[name]

    def _like(self, prefix: str, *, whole: bool) -> Iterator[str]:
        at = bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            if not whole or self._keys[at] == prefix:
                yield self._keys[at]
            at += 1
