"""``lorry``: where sources come from."""

from __future__ import annotations

import argparse

from fabric.commands.common import open_project
from fabric.config import Settings


def run(options: argparse.Namespace, settings: Settings) -> int:
    raise NotImplementedError
