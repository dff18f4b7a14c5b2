"""``graph``: prints the build graph of a system."""

from __future__ import annotations

import argparse

from fabric.commands.shared.arguments import add_json, add_locked
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_graph, plan_of
from fabric.config import Settings
from fabric.definitions.describe import describe, dot, tree


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_locked(parser)
    parser.add_argument("system", metavar="SYSTEM", help="system morph")
    parser.add_argument("--dot", action="store_true", help="print the graph for Graphviz")
    parser.add_argument(
        "--offline", action="store_true", help="access no repository; omit cache keys"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    project, graph = open_graph(settings, options.system)
    if options.locked:
        project.require_pins(graph)
    if options.json:
        facts = describe(graph)
        if not options.offline:
            plan = plan_of(project, graph)
            for step in facts["steps"]:
                step["key"] = plan.keys.get(step["id"], "")
        print_json(facts)
    elif options.dot:
        print(dot(graph), end="")
    else:
        print(tree(graph), end="")
    return 0
