"""Edits fields of an entry in a lorry file, and keeps the rest of the text unchanged."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

#: The path of a field within an entry: ("version",) or ("components", "doc").
Field = tuple[str, ...]

#: A new field is put after the first of these fields that exists.
_AFTER = {
    "version": ("package", "type"),
    "sha256": ("version", "package", "type"),
    "tree": ("sha256", "version", "package", "type"),
}


def edited(text: str, name: str, changes: Mapping[Field, str]) -> str:
    """A lorry file's text with other values in the entry ``name``.

    New fields of `_AFTER` are added.  ValueError if there is no position for one.
    """
    try:
        for field, value in changes.items():
            text = _with(text, name, field, value)
    except yaml.YAMLError as error:
        raise ValueError("not YAML to this parser") from error
    return text


def _with(text: str, name: str, field: Field, value: str) -> str:
    # the pure Python parser, whose nodes have positions in the text
    entry = _value(yaml.compose(text, yaml.SafeLoader), name)
    node = entry
    for part in field:
        node = _value(node, part)
    if isinstance(node, ScalarNode):
        start, end = node.start_mark.index, node.end_mark.index
        return text[:start] + _scalar(value, node.style) + text[end:]
    if not isinstance(entry, MappingNode) or field[-1] not in _AFTER:
        raise ValueError(f"no place for {field[-1]}")
    for neighbour in _AFTER[field[-1]]:
        before = _value(entry, neighbour)
        if isinstance(before, ScalarNode):
            end = before.end_mark.index
            added = f"{field[-1]}: {_scalar(value, None)}"
            if entry.value[0][0].style == '"':  # JSON stays JSON
                added = f'"{field[-1]}": "{value}"'
            if entry.flow_style:
                return f"{text[:end]}, {added}{text[end:]}"
            line = text.find("\n", end)
            line = len(text) if line < 0 else line
            indent = " " * entry.value[0][0].start_mark.column
            return f"{text[:line]}\n{indent}{added}{text[line:]}"
    raise ValueError(f"no place for {field[-1]}")


def _value(node: Node | None, key: str) -> Node | None:
    """The value of a key in a mapping; None if there is none."""
    pairs = node.value if isinstance(node, MappingNode) else ()
    return next((value for found, value in pairs if found.value == key), None)


def _scalar(value: str, style: str | None) -> str:
    """A text as YAML, in quotes if it had some, or would otherwise be a number."""
    if style in ('"', "'"):
        return f"{style}{value}{style}"
    return value if yaml.safe_load(value) == value else f"'{value}'"
