"""``lorry``: where sources come from: list them, import them, renew their pins."""

from __future__ import annotations

import argparse

from fabric.commands.common import open_project, print_json
from fabric.config import Settings
from fabric.render import table


def run(options: argparse.Namespace, settings: Settings) -> int:
    project = open_project(settings)
    sources = project.sources
    names = options.names or sorted(lorry.name for lorry in sources.lorries)
    if options.action == "list":
        lorries = [sources.lorries.named(name) for name in names]
        if options.json:
            facts = ("name", "type", "repo", "ref", "where")
            print_json([{fact: getattr(one, fact) for fact in facts} for one in lorries])
        else:
            for line in table((one.repo, one.type, one.ref, one.where) for one in lorries):
                print(line)
        return 0
    done = {}
    for name in names:
        if options.action == "import":
            source = sources.run_lorry(name)
            sources.publish([source])
            done[name] = [f"{source.ref} is commit {source.commit}"]
        else:
            done[name] = sources.update_lorry(name) or ["nothing newer"]
        if not options.json:
            print("\n".join(f"{name}: {line}" for line in done[name]))
    if options.json:
        print_json(done)
    return 0
