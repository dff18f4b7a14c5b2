"""Which artifact a path, or a chunk artifact, belongs to.

Rules stand in order and the first one that matches wins.  Patterns are matched at the start
only, not at the end, as ever: ``.*-doc`` takes ``gtk-doc-bins`` and ``lib.*\\.a`` takes
``libfoo.apk``.  Real definitions depend on it: with both ends anchored, files would change
artifacts.

Patterns are matched by RE2, in time linear in the length of a path, whoever wrote them.

Patterns are matched by RE2, in a time that is linear in the length of a path, whatever they are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fabric import bounds
from fabric.definitions.graph import Rule
from fabric.errors import BuildFailed

#: Loading RE2 takes as long as loading small definitions, and a build of which all is cached needs
#: it only for other patterns than these: surely right, and of one word.
_ATOM = r"(?:[\w/%@:,=~-]|\.|\\[.d+-]|\[\^?(?:[\w/.]|\\[.d])+\])[*+?]?"
_INNER = rf"{_ATOM}|\||\((?:{_ATOM}|\|)*\)[*+?]?"
_PLAIN = re.compile(rf"(?:{_ATOM}|\((?:{_INNER})*\)[*+?]?)*\$?", re.A)
_WORD = re.compile(r"(\.\*)?([\w/-]*)(?:\.\*)?", re.A)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UP_TO = re.compile(r"\{(,\d+)\}")
#: Stands for the artifact of paths that no rule takes.
UNMATCHED = ""


class SplitRule(Protocol):
    """A rule of a graph or of a job."""

    @property
    def artifact(self) -> str: ...

    @property
    def include(self) -> tuple[str, ...]: ...


class PatternError(BuildFailed):
    """A split rule has a pattern that RE2 does not take.  In a job, that is the chunk's fault."""


class _Words:
    """Finds the first of some patterns of one word, like ``.*-bins``, that matches a text."""

    def __init__(self, patterns: Iterable[re.Match[str]]) -> None:
        self._words = [(bool(found[1]), found[2]) for found in patterns]

    def first(self, text: str) -> int | None:
        line = text.partition("\n")[0]  # no further does "." reach
        for number, (anywhere, word) in enumerate(self._words):
            if word in line if anywhere else line.startswith(word):
                return number
        return None


class _Matcher:
    """Finds the first of some patterns that matches at the start of a text.

    One automaton tries all of them at once.  Where it gives none, it may have been out of room,
    and they are tried one by one.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        import re2

        self._each = [compile_rule(pattern) for pattern in patterns]
        self._all = re2.Set.MatchSet(_options())
        for pattern in patterns:
            self._all.Add(pattern)
        try:
            self._all.Compile()
        except re2.error:  # all together they are too large
            self._all = None

    def first(self, text: str) -> int | None:
        try:
            data = text.encode()
        except UnicodeEncodeError:  # a name that is no UTF-8: "." stands for each such byte
            data = _SURROGATE.sub("\ufffd", text).encode()
        found = self._all.Match(data) if self._all is not None else None
        if found:
            return int(min(found))
        for number, one in enumerate(self._each):
            if one.match(data):
                return number
        return None


def _options() -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return options


@functools.lru_cache(1024)
def compile_rule(pattern: str) -> Any:
    """A rule's pattern, compiled by RE2.  PatternError if RE2 does not take it."""
    import re2

    if found := _UP_TO.search(pattern):  # RE2 takes it for plain characters
        raise PatternError(f"write {{0{found[1]}}} for {found[0]}")
    options = _options()
    options.max_mem = bounds.PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0] if isinstance(error, re2.error) else "it is no text"
        why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise PatternError(why) from None


def check_rule(pattern: str) -> None:
    """PatternError if RE2 does not take a pattern."""
    if not _PLAIN.fullmatch(pattern):
        compile_rule(pattern)


@functools.lru_cache(64)
def _matcher(patterns: tuple[str, ...]) -> _Matcher | _Words:
    """What finds the first of them.  Most strata have the same ones."""
    words = [found for pattern in patterns if (found := _WORD.fullmatch(pattern))]
    return _Words(words) if len(words) == len(patterns) else _Matcher(patterns)


class Splitter:
    """Rules ready for use.  PatternError if a pattern cannot be taken, or they are too many."""

    def __init__(self, rules: Iterable[SplitRule]) -> None:
        pairs = [(pattern, rule.artifact) for rule in rules for pattern in rule.include]
        if len(pairs) > 2 * bounds.PATTERNS:  # a morph's own, and the default ones
            raise PatternError(f"split rules of more than {2 * bounds.PATTERNS:,} patterns")
        self._artifacts = [artifact for _, artifact in pairs]
        self._matcher = _matcher(tuple(pattern for pattern, _ in pairs))

    def artifact(self, path: str) -> str | None:
        """The artifact that ``path`` belongs to, if any."""
        found = self._matcher.first(path)
        return None if found is None else self._artifacts[found]


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
