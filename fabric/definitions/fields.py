"""Reads fields of morphs, and collects the mistakes in them: one run reports all."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterable
from typing import Any

from fabric import bounds
from fabric.definitions.located_yaml import Map, Seq
from fabric.definitions.splitting import PatternError, check_rule
from fabric.errors import Problem, suggest

#: Names become file names (``/NAME.build``, ``/baserock/ARTIFACT.meta``) and log names.
_NAME = re.compile(r"[^\s/\x00-\x1f.-][^\s/\x00-\x1f]*\Z")
_SOURCE = re.compile(r"[^\s\x00-\x1f-][^\s\x00-\x1f]*\Z")
#: Syntax that RE2 lacks -> hint.
_PATTERN_HINTS = {
    r"\Z": r": write \z",
    "(?=": ": there is no lookahead",
    "(?!": ": there is no lookahead",
    "(?<": ": there is no lookbehind",
}
_MISSING = object()
_MANY = 15


def listing(words: Iterable[str]) -> str:
    """Words for a message: ``a, b, c``, or ``none``."""
    return ", ".join(words) or "none"


def kind_of(value: Any) -> str:
    """A YAML value's type and content, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if value else "empty"
    return "a list" if isinstance(value, list) else "a mapping"


class Findings:
    """Mistakes in the definitions, and warnings about fields without effect."""

    __slots__ = ("errors", "warnings")

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, file: str, line: int, message: str) -> None:
        self.errors.append(Problem(file, line, message))

    def warn(self, file: str, line: int, message: str) -> None:
        self.warnings.append(Problem(file, line, message))


class Fields:
    """Reads the mappings of one file.  Every method reports mistakes and returns a usable value.

    ``what`` names the mapping in messages.
    """

    __slots__ = ("file", "findings")

    def __init__(self, file: str, findings: Findings) -> None:
        self.file = file
        self.findings = findings

    def report(self, line: int, message: str) -> None:
        self.findings.error(self.file, line, message)

    def ignored(self, given: Map, what: str, keys: Iterable[str]) -> None:
        """Warn of fields that are allowed, but have no effect here."""
        for key in keys:
            if key in given:
                message = f"{what}: the field {key!r} means nothing here: remove it"
                self.findings.warn(self.file, given.lines[key], message)

    def known(
        self, given: Map, what: str, allowed: Collection[str], but: Collection[str] = ()
    ) -> None:
        """Report every field of ``given`` that is neither in ``allowed`` nor in ``but``."""
        for key in given:
            if key not in allowed and key not in but:
                hint = suggest(key, allowed)
                if not hint and len(allowed) < _MANY:
                    hint = f"; known are {listing(sorted(allowed))}"
                self.report(given.lines[key], f"{what}: unknown field {key!r}{hint}")

    def mapping(self, value: Any, line: int, what: str) -> Map | None:
        if isinstance(value, Map):
            return value
        self.report(line, f"{what} must be a mapping, not {kind_of(value)}")
        return None

    def items(self, given: Map, key: str, what: str) -> list[tuple[int, Any]]:
        """The list in field ``key`` as (line, item); empty if there is none."""
        value = given.get(key, _MISSING)
        if value is _MISSING:
            return []
        if isinstance(value, Seq):
            return list(zip(value.lines, value, strict=True))
        self.report(given.lines[key], f"{what}: {key!r} must be a list, not {kind_of(value)}")
        return []

    def text(self, given: Map, key: str, what: str, default: str | None = None) -> str:
        """A field of text.

        Without ``default`` the field is required.  Its text may be empty only if ``default`` is "".
        """
        value = given.get(key, _MISSING)
        if type(value) is str and (value or default == ""):
            return value
        if value is _MISSING:
            if default is None:
                self.report(given.line, f"{what}: the field {key!r} is missing")
            return default or ""
        line = given.lines[key]
        if value == "" or value is None:
            remove = "" if default is None else ", or remove the field"
            self.report(line, f"{what}: {key!r} is empty: give it a value{remove}")
        elif isinstance(value, list | dict):
            self.report(line, f"{what}: {key!r} must be text, not {kind_of(value)}")
        else:
            self.report(line, f"{what}: {key!r} is {kind_of(value)}, not text: put it in quotes")
        return default or ""

    def name(self, given: Map, key: str, what: str, default: str | None = None) -> str:
        """A field of text that is a valid name, as by `is_name`."""
        value = self.text(given, key, what, default)
        if value and not is_name(value):
            self.report(given.lines[key], f"{what}: {bad_name(value)}")
        return value

    def source(self, given: Map, key: str, what: str, default: str | None = None) -> str:
        """A repository, URL or ref: text without spaces that does not look like an option."""
        value = self.text(given, key, what, default)
        if value and not (_SOURCE.match(value) and value.isprintable()):
            message = f"{what}: {key!r} is {value!r}: it may not have spaces, nor begin with '-'"
            self.report(given.lines.get(key, given.line), message)
        return value

    def truth(self, given: Map, key: str, what: str, *, default: bool) -> bool:
        """A field that is true or false."""
        value = given.get(key, default)
        if isinstance(value, bool):
            return value
        line = given.lines[key]
        self.report(line, f"{what}: {key!r} must be true or false, not {kind_of(value)}")
        return default

    def description(self, given: Map, what: str) -> str:
        """The field ``description``, which may be empty."""
        if given.get("description") is None:
            return ""
        return self.text(given, "description", what, "")

    def texts(self, given: Map, key: str, what: str) -> tuple[str, ...]:
        """A field that is a list of texts; without the field it is empty."""
        value = given.get(key, ())
        if type(value) is Seq and all(type(item) is str and item for item in value):
            return tuple(value)
        items = self.items(given, key, what)
        return tuple(item for line, item in items if self.is_text(item, line, key, what))

    def is_text(self, item: Any, line: int, key: str, what: str) -> bool:
        """Whether an item of the list in field ``key`` is text; reported if not."""
        if isinstance(item, str) and item:
            return True
        if isinstance(item, list | dict):
            self.report(line, f"{what}: an item of {key!r} is {kind_of(item)}, not text")
        else:
            quotes = ": put it in quotes" if item not in ("", None) else ""
            self.report(line, f"{what}: an item of {key!r} is {kind_of(item)}{quotes}")
        return False

    def commands(self, given: Map, key: str, what: str) -> tuple[str, ...]:
        """A list of shell commands.  The values ``true`` and ``false`` are those commands."""
        value = given[key]
        if isinstance(value, str):
            self.report(
                given.lines[key], f"{what}: {key!r} must be a list of commands: put '- ' before it"
            )
            return ()
        if type(value) is Seq and any(isinstance(item, bool) for item in value):
            value[:] = [str(item).lower() if isinstance(item, bool) else item for item in value]
        return self.texts(given, key, what)

    def pattern(self, pattern: str, line: int, what: str) -> bool:
        """Whether a split rule's pattern is a regular expression of RE2; reported if not."""
        try:
            check_rule(pattern)
        except PatternError as error:
            self.report(
                line,
                f"{what}: {pattern!r} is not a regular expression of RE2: {error}"
                f"{_PATTERN_HINTS.get(str(error).rpartition(' ')[2], '')}",
            )
            return False
        return True


def bad_name(name: str) -> str:
    """Why a text is not a valid name."""
    if len(name.encode(errors="replace")) > bounds.NAME:
        return f"{name[:40]!r}... is no name: it is longer than {bounds.NAME} bytes"
    return f"{name!r} is no name: no spaces or '/' in it, no '.' or '-' in front"


def is_name(name: str) -> bool:
    """Whether a text is valid in file names, and printable."""
    short = len(name.encode(errors="replace")) <= bounds.NAME
    return bool(_NAME.match(name)) and name.isprintable() and short
