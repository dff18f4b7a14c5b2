"""Assigns paths, and chunk artifacts, to artifacts by split rules.

The first rule that matches wins.  A pattern is anchored at the beginning only: ``.*-doc`` matches
``gtk-doc-bins`` and ``lib.*\\.a`` matches ``libfoo.apk``.  Existing definitions depend on that.

RE2 matches patterns, in time linear in the length of a path.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fabric import bounds
from fabric.definitions.graph import Rule
from fabric.errors import BuildFailed

#: Patterns that are valid without asking RE2, and patterns of one word that need no RE2.  Loading
#: it takes as long as loading small definitions, and a cached build needs it only for others.
_ATOM = r"(?:[\w/%@:,=~-]|\.|\\[.d+-]|\[\^?(?:[\w/.]|\\[.d])+\])[*+?]?"
_INNER = rf"{_ATOM}|\||\((?:{_ATOM}|\|)*\)[*+?]?"
_PLAIN = re.compile(rf"(?:{_ATOM}|\((?:{_INNER})*\)[*+?]?)*\$?", re.A)
_WORD = re.compile(r"(\.\*)?([\w/-]*)(?:\.\*)?", re.A)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UP_TO = re.compile(r"\{(,\d+)\}")
#: Key in the result of `split` for paths that match no rule.
UNMATCHED = ""


class SplitRule(Protocol):
    """A rule of a graph or of a job."""

    @property
    def artifact(self) -> str: ...

    @property
    def include(self) -> tuple[str, ...]: ...


class PatternError(BuildFailed):
    """A pattern of a split rule is invalid.  In a job, that is a fault of the chunk."""


class _Words:
    """Finds the first of several patterns of one word, like ``.*-bins``, that matches a text."""

    def __init__(self, patterns: Iterable[re.Match[str]]) -> None:
        self._words = [(bool(found[1]), found[2]) for found in patterns]

    def first(self, text: str) -> int | None:
        line = text.partition("\n")[0]  # "." does not match a newline
        for number, (anywhere, word) in enumerate(self._words):
            if word in line if anywhere else line.startswith(word):
                return number
        return None


class _Matcher:
    """Finds the first of several patterns that matches the beginning of a text.

    One automaton tries all patterns at once.  If it finds none, it may have run out of memory, so
    the patterns are tried one by one.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        import re2

        self._each = [compile_rule(pattern) for pattern in patterns]
        self._all = re2.Set.MatchSet(_options())
        for pattern in patterns:
            self._all.Add(pattern)
        try:
            self._all.Compile()
        except re2.error:  # the set is too large
            self._all = None

    def first(self, text: str) -> int | None:
        try:
            data = text.encode()
        except UnicodeEncodeError:  # not UTF-8: "." matches each invalid byte
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
    """A compiled pattern.  PatternError if it is invalid."""
    import re2

    if found := _UP_TO.search(pattern):  # literal characters for RE2
        raise PatternError(f"write {{0{found[1]}}} for {found[0]}")
    options = _options()
    options.max_mem = bounds.PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0] if isinstance(error, re2.error) else "it is not text"
        why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise PatternError(why) from None


def check_rule(pattern: str) -> None:
    """PatternError if a pattern is invalid."""
    if not _PLAIN.fullmatch(pattern):
        compile_rule(pattern)


@functools.lru_cache(64)
def _matcher(patterns: tuple[str, ...]) -> _Matcher | _Words:
    """A matcher of these patterns, cached because most strata have the same ones."""
    words = [found for pattern in patterns if (found := _WORD.fullmatch(pattern))]
    return _Words(words) if len(words) == len(patterns) else _Matcher(patterns)


class Splitter:
    """Compiled rules.  PatternError if a pattern is invalid, or there are too many."""

    def __init__(self, rules: Iterable[SplitRule]) -> None:
        pairs = [(pattern, rule.artifact) for rule in rules for pattern in rule.include]
        if len(pairs) > 2 * bounds.PATTERNS:  # a morph's own, and the default ones
            raise PatternError(f"split rules of more than {2 * bounds.PATTERNS:,} patterns")
        self._artifacts = [artifact for _, artifact in pairs]
        self._matcher = _matcher(tuple(pattern for pattern, _ in pairs))

    def artifact(self, path: str) -> str | None:
        """The artifact of ``path``; None if no rule matches."""
        found = self._matcher.first(path)
        return None if found is None else self._artifacts[found]


def artifact_names(rules: Iterable[SplitRule]) -> tuple[str, ...]:
    """The artifacts of rules, each once, in the order of their first rules."""
    return tuple(dict.fromkeys(rule.artifact for rule in rules))


def split(paths: Iterable[str], rules: Sequence[SplitRule]) -> dict[str, list[str]]:
    """Paths by artifact; those that match no rule are under `UNMATCHED`, if there are any.

    ``paths`` are relative to the chunk's install directory, without a trailing slash, and include
    every directory, symlink and file in it.  The result has every artifact of the rules, also
    without paths; paths keep their order.
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
    """A morph's own rules, then the default rules whose artifacts they do not name.

    The artifacts of ``defaults`` are suffixes of ``name``.
    """
    own = {rule.artifact for rule in products}
    rest = (Rule(name + rule.artifact, rule.include) for rule in defaults)
    return products + tuple(rule for rule in rest if rule.artifact not in own)
