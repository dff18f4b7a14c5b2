"""Edits fields of a morph, and keeps the rest of its text, comments included."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fabric.definitions.yaml_scalar import scalar

#: The way to a value: keys of mappings, and positions in lists.
Path = Sequence[str | int]


class Edits:
    """Edits of one text, made together at the end.  Lines are kept, except for added ones."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        # the pure Python parser, whose nodes have positions in the text
        self._root = yaml.compose(text, yaml.SafeLoader)
        self._marks: dict[int, int] = {}  # line -> the column from which on it is a comment
        self._after: dict[int, list[str]] = {}  # line -> lines after it
        self._inside: list[tuple[int, int, int, str]] = []  # line, from, to, text

    def comment_out(self, path: Path) -> bool:
        """Make a field a comment; False if it cannot be one."""
        mapping, key, value = self._field(path)
        if mapping is None or key is None or value is None or mapping.flow_style:
            return False
        first, column = key.start_mark.line, key.start_mark.column
        lines = range(first, self._last(value) + 1)
        if any("&" in self._lines[line] for line in lines):  # an anchor, for aliases elsewhere
            return False
        for line in lines:
            text = self._lines[line]
            indent = len(text) - len(text.lstrip())
            self._marks[line] = column if line == first else min(column, indent)
        return True

    def add(self, path: Path, after: str, text: str) -> bool:
        """Add the line ``text`` to the mapping at ``path``, after a field of one line."""
        mapping, key, value = self._field([*path, after])
        if mapping is None or key is None or value is None:
            return False
        if mapping.flow_style:
            end = value.end_mark
            self._inside.append((end.line, end.column, end.column, f", {text}"))
        else:
            added = self._after.setdefault(self._last(value), [])
            if not added:  # else the mapping is there a second time, by an alias
                added.append(" " * key.start_mark.column + text)
        return True

    def replace(self, path: Path, text: str) -> bool:
        """Give a scalar of one line another text."""
        node = self._node(path)
        if not isinstance(node, ScalarNode):
            return False
        start, end = node.start_mark, node.end_mark
        if start.line != end.line:
            return False
        self._inside.append((start.line, start.column, end.column, scalar(text, node.style)))
        return True

    def text(self) -> str:
        """The edited text."""
        made = []
        for number, line in enumerate(self._lines):
            for _, start, end, text in sorted(
                (one for one in self._inside if one[0] == number), reverse=True
            ):
                line = line[:start] + text + line[end:]
            column = self._marks.get(number)
            made.append(line if column is None else f"{line[:column]}# {line[column:]}".rstrip())
            made += self._after.get(number, [])
        return "\n".join(made)

    def moved(self, line: int) -> int:
        """The number of a line, from 1, in the edited text."""
        return line + sum(len(added) for after, added in self._after.items() if after + 1 < line)

    def _node(self, path: Path) -> Node | None:
        node = self._root
        for part in path:
            if isinstance(node, MappingNode):
                node = next((value for key, value in node.value if key.value == part), None)
            elif isinstance(node, SequenceNode) and isinstance(part, int):
                node = node.value[part] if part < len(node.value) else None
            else:
                return None
        return node

    def _field(self, path: Path) -> tuple[MappingNode | None, Node | None, Node | None]:
        mapping = self._node(path[:-1])
        if isinstance(mapping, MappingNode):
            for key, value in mapping.value:
                if key.value == path[-1]:
                    return mapping, key, value
        return None, None, None

    def _last(self, value: Node) -> int:
        """The last line of a value."""
        while isinstance(value, MappingNode | SequenceNode) and value.value:
            if value.flow_style:
                return value.end_mark.line
            last = value.value[-1]
            value = last[1] if isinstance(last, tuple) else last
        end: int = value.end_mark.line
        if not isinstance(value, ScalarNode) or value.style not in ("|", ">"):
            return end
        end -= 1  # a block ends where the next token begins
        while end > value.start_mark.line and not self._lines[end].strip():
            end -= 1
        return end
