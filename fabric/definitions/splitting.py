"""Which artifact a path, or a chunk artifact, belongs to.

Rules stand in order and the first one that matches wins.  Patterns are matched at the start
only, not at the end, as ever: ``.*-doc`` takes ``gtk-doc-bins`` and ``lib.*\\.a`` takes
``libfoo.apk``.  Real definitions depend on it: with both ends anchored, files would change
artifacts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from fabric.definitions.graph import Rule

#: Stands for the artifact of paths that no rule takes.
UNMATCHED = ""


class SplitRule(Protocol):
    """A rule of a graph or of a job."""

    @property
    def artifact(self) -> str: ...

    @property
    def include(self) -> tuple[str, ...]: ...


@functools.cache
def compile_rule(pattern: str) -> re.Pattern[str]:
    """A rule's pattern, compiled once.  `re.error` if it is none."""
    return re.compile(pattern)


class Splitter:
    """Rules ready for use."""

    def __init__(self, rules: Iterable[SplitRule]) -> None:
        self._rules: list[tuple[re.Pattern[str], str]] = [
            (compile_rule(pattern), rule.artifact) for rule in rules for pattern in rule.include
        ]

    def artifact(self, path: str) -> str | None:
        """The artifact that ``path`` belongs to, if any."""
        for pattern, artifact in self._rules:
            if pattern.match(path):
                return artifact
        return None


def artifact_names(rules: Iterable[SplitRule]) -> tuple[str, ...]:
    """The artifacts that rules make, each once, in the order they first appear."""
    return tuple(dict.fromkeys(rule.artifact for rule in rules))


def split(paths: Iterable[str], rules: Sequence[SplitRule]) -> dict[str, list[str]]:
    """Paths by artifact.  Those that no rule takes stand under `UNMATCHED`, if there are any.

    ``paths`` are relative to the chunk's install directory, without a trailing slash, and name
    every directory, symlink and file in it.  Every artifact of the rules is in the result, also
    when nothing belongs to it; paths keep their order.
    """
    splitter = Splitter(rules)
    found: dict[str, list[str]] = {name: [] for name in artifact_names(rules)}
    for path in paths:
        artifact = splitter.artifact(path)
        found.setdefault(UNMATCHED if artifact is None else artifact, []).append(path)
    return found


def with_defaults(
    products: tuple[Rule, ...], defaults: tuple[Rule, ...], name: str
) -> tuple[Rule, ...]:
    """A morph's own rules, then each default one whose artifact they do not name.

    ``defaults`` hold suffixes, which are put after ``name``.
    """
    own = {rule.artifact for rule in products}
    rest = (Rule(name + rule.artifact, rule.include) for rule in defaults)
    return products + tuple(rule for rule in rest if rule.artifact not in own)
