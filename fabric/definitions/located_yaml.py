"""Parses YAML into the values of `yaml.safe_load`, with line numbers.

The C parser composes the nodes, and this module makes the values: PyYAML's constructor has no line
numbers, accepts a key twice, and takes most of the time of loading.  The values are text, numbers,
booleans, null, dates, lists, and mappings with text keys; anchors, aliases and ``<<`` work.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import Resolver

from fabric import bounds
from fabric.errors import Problem

_PREFIX = "tag:yaml.org,2002:"
_STR, _MAP, _SEQ, _MERGE = (_PREFIX + name for name in ("str", "map", "seq", "merge"))
#: A possible anchor, without which there is no alias.  Some line ends are not ASCII: NEL, LS, PS.
_ANCHOR = re.compile(rb"&(?<![^\s\[{,:?\x80-\xff-]&)(?![\s&])")
_DEPTH = bounds.YAML_DEPTH
_NESTED = f"nested more than {bounds.YAML_DEPTH} deep: no file needs that"
_TOO_MUCH = f"more than {bounds.YAML_NODES:,} values: no file needs that"


class Map(dict[str, Any]):
    """A mapping.  ``lines[key]`` is the line of a key, ``line`` that of the beginning."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class Seq(list[Any]):
    """A list.  ``lines[i]`` is the line of item i, ``line`` that of the beginning."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


class _Scalars:
    """Resolves plain scalars by PyYAML's rules, without a regex for most of them."""

    _resolver: Any = Resolver()
    _constructor = SafeConstructor()
    _tags = frozenset(_PREFIX + name for name in ("bool", "float", "int", "null", "timestamp"))
    #: First characters that a scalar other than text can have.
    _first = frozenset(Resolver.yaml_implicit_resolvers)

    @classmethod
    def tag(cls, value: str) -> str:
        if value and value[0] not in cls._first:
            return _STR
        return str(cls._resolver.resolve(ScalarNode, value, (True, False)))

    @classmethod
    def value(cls, node: ScalarNode) -> Any:
        make = SafeConstructor.yaml_constructors.get(node.tag)
        if make is None or node.tag not in cls._tags:
            raise ConstructorError(None, None, f"the tag {node.tag!r} means nothing here", None)
        if len(node.value) > bounds.YAML_NUMBER:
            raise ValueError(f"longer than {bounds.YAML_NUMBER} characters, as no number is")
        return make(cls._constructor, node)


class _TooMuch(Exception):
    """A file exceeds a bound, at ``line``."""

    def __init__(self, node: Node | None, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1 if node else 1


class _Parser(CParser):
    """The C parser with a minimal resolver.

    The parser recurses in C, so the resolver refuses nodes that are too deep.
    """

    depth = 0

    def descend_resolver(self, parent: Node | None, index: object) -> None:  # noqa: ARG002
        """Called before a node inside ``parent`` is composed."""
        self.depth = depth = self.depth + 1
        if depth > _DEPTH:
            raise _TooMuch(parent, _NESTED)

    def ascend_resolver(self) -> None:
        """Called after it is composed."""
        self.depth -= 1

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode:
            return _Scalars.tag(value) if implicit[0] else _STR
        return _MAP if kind is MappingNode else _SEQ


class _Counter(_Parser):
    """A parser that counts nodes, for files that are long enough to have too many."""

    nodes = 0

    def descend_resolver(self, parent: Node | None, index: object) -> None:
        """Count the node, too."""
        super().descend_resolver(parent, index)
        self.nodes += 1
        if self.nodes > bounds.YAML_NODES:
            raise _TooMuch(parent, _TOO_MUCH)


class _Scale:
    """Weighs nodes as if aliases were written out, which can grow exponentially.

    _TooMuch past a bound.  A node is weighed before the aliases to it, so this recurses no deeper
    than the composer.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int]] = {}  # id of a node -> its weight and height

    def weigh(self, node: Node) -> tuple[int, int]:
        if type(node) is ScalarNode:
            return 1 + (len(node.value) >> 6), 1
        if id(node) in self.known:
            return self.known[id(node)]
        self.known[id(node)] = 0, 0  # for an alias inside its own node, which `_Builder` reports
        weight, height = 1, 0
        for item in node.value:
            for inner in item if type(item) is tuple else (item,):
                more, below = self.weigh(inner)
                weight += more
                height = max(height, below)
        height += 1
        if height > bounds.YAML_DEPTH:
            raise _TooMuch(node, _NESTED)
        if weight > bounds.YAML_NODES:
            raise _TooMuch(node, _TOO_MUCH)
        self.known[id(node)] = weight, height
        return weight, height


class _Builder:
    """Makes the values of one file; mistakes are appended to ``problems``."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.done: dict[int, Any] = {}  # id of a node -> its value, for aliases
        self.open: set[int] = set()  # nodes whose values are being made: an alias to one is a loop

    def report(self, line: int, message: str) -> None:
        self.problems.append(Problem(self.file, line, message))

    def value(self, node: Node) -> Any:
        if type(node) is ScalarNode:
            return node.value if node.tag == _STR else self._scalar(node)
        made = self.done.get(id(node))
        if made is not None:
            return made
        line = node.start_mark.line + 1
        if id(node) in self.open:
            self.report(line, "an alias here contains itself")
            return None
        self.open.add(id(node))
        if type(node) is SequenceNode and node.tag == _SEQ:
            made = self._sequence(node, line)
        elif type(node) is MappingNode and node.tag == _MAP:
            made = self._mapping(node, line)
        else:
            self.report(line, f"the tag {node.tag!r} means nothing here: leave it out")
        self.open.discard(id(node))
        self.done[id(node)] = made
        return made

    def _scalar(self, node: ScalarNode) -> Any:
        try:
            return _Scalars.value(node)
        except (ConstructorError, ValueError, OverflowError) as error:
            what = getattr(error, "problem", None) or str(error)
        except (LookupError, AttributeError):  # the value does not fit its tag
            what = f"it is not a valid {node.tag.removeprefix(_PREFIX)}"
        self.report(node.start_mark.line + 1, f"cannot read {node.value[:80]!r}: {what}")
        return None

    def _sequence(self, node: SequenceNode, line: int) -> Seq:
        made = Seq(line)
        for item in node.value:
            made.append(self.value(item))
            made.lines.append(item.start_mark.line + 1)
        return made

    def _mapping(self, node: MappingNode, line: int) -> Map:
        made = Map(line)
        lines = made.lines
        merged: list[tuple[int, Any]] = []
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                merged.append((at, self.value(value_node)))
                continue
            if key_node.tag != _STR or type(key_node) is not ScalarNode:
                if type(key_node) is ScalarNode:
                    what = f"{key_node.value!r} is not: put it in quotes"
                else:
                    what = "this one is a list or a mapping"
                self.report(at, f"a key must be text, and {what}")
                continue
            key = key_node.value
            if key in lines:
                self.report(
                    at, f"{key!r} is given twice, first in line {lines[key]}: remove one of them"
                )
            made[key] = self.value(value_node)
            lines[key] = at
        for at, value in merged:
            self._merge(made, at, value)
        return made

    def _merge(self, made: Map, at: int, value: Any) -> None:
        for source in value if isinstance(value, Seq) else [value]:
            if not isinstance(source, Map):
                self.report(at, "'<<' takes a mapping, or a list of mappings")
                continue
            for key, inherited in source.items():
                if key not in made:
                    made[key] = inherited
                    made.lines[key] = source.lines[key]


def _syntax_error(data: bytes, file: str, error: yaml.MarkedYAMLError) -> Problem:
    message = f"not YAML: {error.problem or error.context}"
    mark = error.problem_mark or error.context_mark
    if error.context and error.context_mark and error.problem:
        message += f" {error.context} that starts in line {error.context_mark.line + 1}"
    lines = data.count(b"\n") + (
        not data.endswith(b"\n")
    )  # the parser may report the line after the last one
    return Problem(file, min(mark.line + 1, lines) if mark else 1, message)


def parse(data: bytes, file: str, problems: list[Problem]) -> Any:
    """The value of a YAML document: Map, Seq or a scalar; None if it is empty or invalid.

    Mistakes are appended to ``problems``, with the name ``file``.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        problems.append(Problem(file, 1, "not readable as text: it is UTF-16, save it as UTF-8"))
        return None
    try:
        parser = _Parser if len(data) <= bounds.YAML_NODES else _Counter
        node = parser(data).get_single_node()
        if node is not None and _ANCHOR.search(data):
            _Scale().weigh(node)
    except _TooMuch as error:
        problems.append(Problem(file, error.line, str(error)))
        return None
    except yaml.reader.ReaderError as error:
        line = data.count(b"\n", 0, error.position) + 1
        problems.append(Problem(file, line, f"not readable as text: {error.reason}"))
        return None
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_error(data, file, error))
        return None
    return None if node is None else _Builder(file, problems).value(node)
