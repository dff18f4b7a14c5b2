"""Prints JSON for programs, writes documents to files, and puts names into a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from fabric.errors import FabricError
from fabric.host.files import write_whole


def facts(value: Any) -> Any:
    """A message, or several, as plain values: every field is there, default or not."""
    if isinstance(value, msgspec.Struct):
        return {name: facts(getattr(value, name)) for name in value.__struct_fields__}
    return [facts(one) for one in value] if isinstance(value, tuple | list) else value


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, indent=1))


def save(document: bytes, to: Path, what: str) -> None:
    """Write a document to a file, whole; ``what`` it is, for the FabricError if that fails."""
    try:
        write_whole(to, document, mode=0o644)
    except OSError as error:
        raise FabricError(f"{to}: {what} cannot be written: {error.strerror}") from error
