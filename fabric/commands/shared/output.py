"""Prints JSON for programs."""

from __future__ import annotations

import json
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
