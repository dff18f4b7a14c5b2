"""Parses command lines, with a hint for words that are similar to known ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fabric.errors import suggest


class Parser(argparse.ArgumentParser):
    """A parser that suggests choices, and lists its ``arguments`` for completion."""

    @property
    def arguments(self) -> Sequence[argparse.Action]:
        return self._actions

    @property
    def words(self) -> list[str]:
        """All options."""
        return [word for action in self._actions for word in action.option_strings]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        hint = suggest(str(value), known) or f" (choose from {', '.join(known)})"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")
