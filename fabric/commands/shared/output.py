"""Prints JSON for programs, and puts names into a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec


def facts(value: Any) -> Any:
    """A message, or several, as plain values: every field is there, default or not."""
    if isinstance(value, msgspec.Struct):
        return {name: facts(getattr(value, name)) for name in value.__struct_fields__}
    return [facts(one) for one in value] if isinstance(value, tuple | list) else value


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, indent=1))


def first_of(names: Sequence[str], most: int) -> str:
    """Names in one line, and how many there are besides: "a, b and 3 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
