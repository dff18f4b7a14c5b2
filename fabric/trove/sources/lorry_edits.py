"""Edits fields of an entry in a lorry file, and keeps the rest of the text unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fabric.definitions.yaml_scalar import scalar

#: The path of a field within an entry: ("version",) or ("components", "doc").
Field = tuple[str, ...]
#: A text, or a list of texts.
Value = str | tuple[str, ...]

#: A new field is put after the first of these fields of its mapping that exists.
_AFTER = {
    "version": ("package", "type"),
    "sha256": ("version", "package", "type", "inner", "url"),
    "debian-sha256": ("debian-patches", "sha256", "version", "package", "type"),
    "tree": ("debian-sha256", "sha256", "version", "package", "type"),
    "patches": ("ref", "tree", "debian-sha256", "sha256", "version", "package", "type"),
}


def edited(text: str, name: str, changes: Mapping[Field, Value]) -> str:
    """A lorry file's text with other values in the entry ``name``.

    New fields of `_AFTER` are added.  ValueError if there is no position for one.
    """
    try:
        for field, value in changes.items():
            text = _with(text, name, field, value)
    except yaml.YAMLError as error:
        raise ValueError("not YAML to this parser") from error
    return text


def _with(text: str, name: str, field: Field, value: Value) -> str:
    # the pure Python parser, whose nodes have positions in the text
    mapping = _value(yaml.compose(text, yaml.SafeLoader), name)
    for part in field[:-1]:
        mapping = _value(mapping, part)
    node = _value(mapping, field[-1])
    if isinstance(node, ScalarNode) and isinstance(value, str):
        start, end = node.start_mark.index, node.end_mark.index
        return text[:start] + scalar(value, node.style) + text[end:]
    if isinstance(node, SequenceNode) and node.value and not isinstance(value, str):
        return _with_items(text, node, value) if value else _without(text, node)
    if node is not None or not isinstance(mapping, MappingNode) or field[-1] not in _AFTER:
        raise ValueError(f"no place for {field[-1]}")
    return _with_field(text, mapping, field[-1], value)


def _with_field(text: str, mapping: MappingNode, name: str, value: Value) -> str:
    """The text with a new field of a mapping."""
    for neighbour in _AFTER[name]:
        before = _value(mapping, neighbour)
        if isinstance(before, ScalarNode):
            end = before.end_mark.index
            if mapping.value[0][0].style == '"':  # JSON stays JSON
                return f'{text[:end]}, "{name}": {json.dumps(value)}{text[end:]}'
            if mapping.flow_style:
                return f"{text[:end]}, {name}: {_flow(value)}{text[end:]}"
            line = text.find("\n", end)
            line = len(text) if line < 0 else line
            indent = "\n" + " " * mapping.value[0][0].start_mark.column
            items = "" if isinstance(value, str) else "".join(f"{indent}- {one}" for one in value)
            one = f" {scalar(value, None)}" if isinstance(value, str) else items
            return f"{text[:line]}{indent}{name}:{one}{text[line:]}"
    raise ValueError(f"no place for {name}")


def _with_items(text: str, node: SequenceNode, values: tuple[str, ...]) -> str:
    """The text with other items of a list; those that stay in front keep their comments."""
    old = [item.value for item in node.value]
    kept = 0
    while kept < min(len(old), len(values)) and old[kept] == values[kept]:
        kept += 1
    if not kept or not values[kept:]:  # replaced as a whole
        kept = 0
    start = node.value[kept - 1].end_mark.index if kept else node.value[0].start_mark.index
    end = node.value[-1].end_mark.index
    comma = ", " if node.flow_style else "\n" + " " * node.start_mark.column + "- "
    added = comma.join(scalar(one, node.value[0].style) for one in values[kept:])
    if kept:
        start = end if kept == len(old) else start
        added = comma + added
    return text[:start] + added + text[end:]


def _without(text: str, node: SequenceNode) -> str:
    """The text without a list, whose field has a line of its own."""
    if node.flow_style:
        raise ValueError("no line of its own")
    start = text.rfind("\n", 0, text.rfind(":", 0, node.start_mark.index))
    end = text.find("\n", node.value[-1].end_mark.index)
    return text[: start + 1] + (text[end + 1 :] if end >= 0 else "")


def _flow(value: Value) -> str:
    if isinstance(value, str):
        return scalar(value, None)
    return f"[{', '.join(scalar(one, None) for one in value)}]"


def _value(node: Node | None, key: str) -> Node | None:
    """The value of a key in a mapping; None if there is none."""
    pairs = node.value if isinstance(node, MappingNode) else ()
    return next((value for found, value in pairs if found.value == key), None)
