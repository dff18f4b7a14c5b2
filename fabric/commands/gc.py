"""``gc``: remove what is old, never what something kept needs."""

from __future__ import annotations

import argparse

from fabric.building.workspace import Workspace
from fabric.commands.common import open_graph, plan_of, print_json
from fabric.config import Settings
from fabric.errors import FabricError, MachineFault
from fabric.render import size
from fabric.trove.configured import open_sources, open_store

DAY = 86400.0


def run(options: argparse.Namespace, settings: Settings) -> int:
    if not options.keep_days >= 0:  # nor is NaN
        raise FabricError(f"--keep-days {options.keep_days:g}: give a number of days, or 0")
    keep = _pinned(settings)
    for system in options.keep:
        project, graph = open_graph(settings, system)
        keep |= set(plan_of(project, graph).keys.values())
    store = open_store(settings)
    sources = open_sources(settings)
    age = options.keep_days * DAY
    # What is here first: whoever may only read the store may still want room on his own disk.
    with Workspace(settings.work_dir, store, sources) as workspace:
        freed = sources.gc(age, workspace.alone)
        layers = workspace.clean(keep)
    if not options.json:
        print(f"{size(freed)} of downloads and sources' trees removed;")
        print(
            "layers and scratch removed;"
            if layers
            else "layers and scratch stay: a worker is using them; run gc again when it has ended;",
            flush=True,
        )
    before = store.usage()
    gone = store.gc(keep, older_than=age)
    left = {"steps": before.manifests - gone.manifests, "bytes": before.bytes - gone.bytes}
    if options.json:
        print_json(
            {
                "steps": gone.manifests,
                "blobs": gone.blobs,
                "bytes": gone.bytes,
                "sources": freed,  # bytes
                "layers": layers,
                "left": left,
            }
        )
    else:
        print(f"{gone.manifests} steps and {gone.blobs} blobs removed, {size(gone.bytes)};")
        print(f"left: {left['steps']} steps, {size(left['bytes'])} in {settings.store_url}")
    return 0


def _pinned(settings: Settings) -> set[str]:
    """What builds of the farm need just now.  MachineFault if that cannot be known."""
    if not settings.controller:
        return set()
    from fabric.commands.controller import open_controller

    try:
        with open_controller(settings) as controller:
            return set(controller.query("pinned").keys)
    except FabricError as error:
        raise MachineFault(
            f"nothing is removed: what builds on {settings.controller} need cannot be known"
            f" ({error})"
        ) from None
