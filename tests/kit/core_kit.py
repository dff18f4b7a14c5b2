"""Everything that a core knows, as plain text: equal texts, equal cores."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, GeneratorType, MethodType
from typing import Any

import msgspec

from fabric.scheduling.model import Request
from fabric.scheduling.shares import Share
from fabric.scheduling.state import FarmState

#: What a query may compute and keep: it follows from the rest, and decides nothing.
CACHES: dict[type, set[str]] = {
    Request: {"ends", "estimate_due", "next", "index", "longest"},
    Share: {"_load", "_loaded"},
}


def contents(state: FarmState) -> list[str]:
    """All that is reachable from a state, but for caches; each object once."""
    seen: dict[int, int] = {}
    lines: list[str] = []
    stack: list[Any] = [state]
    while stack:
        value = stack.pop()
        if isinstance(value, str | bytes | int | float | None | FunctionType | MethodType):
            name = getattr(value, "__qualname__", None)
            lines.append(repr(value) if name is None else name)
            continue
        if id(value) in seen:
            lines.append(f"again {seen[id(value)]}")
            continue
        seen[id(value)] = len(seen)
        parts = list(_parts(value))
        lines.append(f"{type(value).__name__} of {len(parts)}")
        stack.extend(reversed(parts))
    return lines


def _parts(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            for pair in value.items():
                yield from pair
        case set() | frozenset():
            yield from sorted(map(repr, value))
        case list() | tuple():
            yield from value
        case GeneratorType() | type():
            yield id(value)
        case msgspec.Struct():
            left_out = CACHES.get(type(value), set())
            yield from (
                getattr(value, name) for name in value.__struct_fields__ if name not in left_out
            )
        case _:
            slots = (
                name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())
            )
            names = dict.fromkeys((*slots, *getattr(value, "__dict__", ())))
            yield from (getattr(value, name) for name in names if hasattr(value, name))
