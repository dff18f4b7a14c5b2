"""``graph``: what a system is built from."""

from __future__ import annotations

import argparse

from fabric.commands.common import open_graph, plan_of, print_json
from fabric.config import Settings
from fabric.definitions.describe import describe, dot, tree


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
