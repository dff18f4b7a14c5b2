"""Finds the line of the definitions that sets an input of a step.

It reads the few files again that it needs: only explanations need lines of all fields, and loading
a system is quicker without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fabric.definitions.graph import COMMAND_STEPS, Step
from fabric.definitions.located_yaml import Map, Seq, parse
from fabric.errors import DefinitionsError

#: Fields of a chunk that its stratum sets; the others are in its morph.
_OF_SPEC = ("build-mode", "prefix", "build-depends")
_OF_MORPH = (*COMMAND_STEPS, "name", "max-jobs", "products", "devices", "system-integration")


class Places:
    """Places in definitions, which ``read`` reads as for `fabric.definitions.load.load`."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._files: dict[str, Any] = {}

    def of(self, step: Step, field: str) -> str:
        """The place of a field of a step: "FILE:LINE", "FILE" if that lacks it, "" if unknown."""
        if step.kind == "system":
            return self._of_system(step, field)
        if step.kind == "stratum":
            return step.morph
        if field == "ref":
            return step.where
        if field in _OF_SPEC:
            return self._of_spec(step, field)
        if field not in _OF_MORPH:
            return ""
        own = self._line(step.morph, field) if step.morph else ""
        default = "" if own and field != "products" else self._default(step, field)
        return " or ".join(filter(None, (own, default))) or step.morph or self._of_spec(step, field)

    def _of_system(self, step: Step, field: str) -> str:
        for entry in self._items(step.morph, "strata"):
            if entry.get("name") == field:
                return f"{step.morph}:{entry.line}"
        return self._line(step.morph, "strata") or step.morph

    def _of_spec(self, step: Step, field: str) -> str:
        file = step.where.rpartition(":")[0]
        for entry in self._items(file, "chunks"):
            if entry.get("name") == step.name:
                return f"{file}:{entry.lines.get(field, entry.line)}"
        return file

    def _default(self, step: Step, field: str) -> str:
        """The place in DEFAULTS of a field that the chunk's own morph may leave out."""
        path = ["split-rules", "chunk"]
        if field in COMMAND_STEPS:
            build_system = step.build_system or str(self._file(step.morph).get("build-system"))
            path = ["build-systems", build_system, field]
        elif field != "products":
            return ""
        given: Any = self._file("DEFAULTS")
        line = 0
        for name in path:
            if not isinstance(given, Map) or name not in given:
                return ""
            line, given = given.lines[name], given[name]
        return f"DEFAULTS:{line}"

    def _line(self, file: str, field: str) -> str:
        line = self._file(file).lines.get(field)
        return f"{file}:{line}" if line else ""

    def _items(self, file: str, field: str) -> list[Map]:
        given = self._file(file).get(field)
        return [one for one in given if isinstance(one, Map)] if isinstance(given, Seq) else []

    def _file(self, file: str) -> Map:
        """The mapping in a file; an empty one if it cannot be read any more."""
        if file not in self._files:
            try:
                data = self._read(file)
            except DefinitionsError:
                data = None
            self._files[file] = parse(data, file, []) if data is not None else None
        given = self._files[file]
        return given if isinstance(given, Map) else Map(1)
