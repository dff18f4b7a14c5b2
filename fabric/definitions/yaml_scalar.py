"""Writes a text as a YAML scalar."""

from __future__ import annotations

import json

import yaml


def scalar(value: str, style: str | None = None) -> str:
    """A text as YAML, in quotes if it had some, or would otherwise be something else."""
    if style in ('"', "'"):
        return f"{style}{value}{style}"
    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        return json.dumps(value)
    return value if plain else f"'{value}'"
