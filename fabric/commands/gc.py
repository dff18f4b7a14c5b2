"""``gc``: remove what is old, never what something kept needs."""

from __future__ import annotations

import argparse
import shutil

from fabric.commands.common import open_graph, print_json
from fabric.config import Settings
from fabric.render import size
from fabric.trove.sources import Sources
from fabric.trove.store import Store

DAY = 86400.0


def run(options: argparse.Namespace, settings: Settings) -> int:
    keep: set[str] = set()
    for system in options.keep:
        project, graph = open_graph(settings, system)
        keep |= set(project.plan(graph).keys.values())
    raise NotImplementedError
