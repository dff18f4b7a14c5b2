"""``logs``: the log of a step that was built, by whomever, cached or not."""

from __future__ import annotations

import argparse
import sys

from fabric.commands.common import find_chunk, print_json
from fabric.config import Settings
from fabric.errors import FabricError

PIECE = 1024 * 1024


def run(options: argparse.Namespace, settings: Settings) -> int:
    project, plan, step = find_chunk(settings, options.chunk, options.system)
    manifest = project.store.manifest(plan.keys[step.id])
    if manifest is None:
        raise FabricError(
            f"{step.name}: not built yet with these inputs, so there is no log in the store;"
            f" a failed build leaves {plan.log_names[plan.keys[step.id]]} where it was started"
        )
    if manifest.log is None:
        raise FabricError(f"{step.name}: it was stored without a log")
    if options.json:
        print_json(
            {
                "name": step.name,
                "key": manifest.key,
                "builder": manifest.builder,
                "seconds": manifest.seconds,
                "log": project.store.read(manifest.log).decode(errors="replace"),
            }
        )
        return 0
    for offset in range(0, manifest.log.size, PIECE):
        sys.stdout.buffer.write(project.store.read(manifest.log, offset, PIECE))
    return 0
