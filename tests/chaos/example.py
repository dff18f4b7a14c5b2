"""Parts of the example system, which the farm builds from real sources with a given toolchain.

The artifacts of a single machine are in the user's own cache, as `make build` leaves it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import synthetic
from systems_kit import MINIMAL, ROOT, Built, user_cache

from fabric import config
from fabric.client.project import Project
from fabric.definitions.select import find
from fabric.trove.artifacts.manifests import decode

#: Built beforehand: each worker needs it for everything, and only unpacks it.
GIVEN = frozenset({"debian-toolchain", "toolchain"})
#: The files and folders of the repository that are definitions.
DEFINITIONS = ("DEFAULTS", "VERSION", "sources", "strata", "systems")


def prepare(folder: Path, parts: Sequence[str]) -> None:
    """Build the parts undisturbed, and put into ``folder`` all that a farm needs for them."""
    cache = user_cache()
    folder.mkdir()
    Built(cache, folder).build(MINIMAL, *parts)
    trove = folder / "trove.git"
    subprocess.run(["git", "init", "-q", "--bare", trove], check=True)
    settings = config.load_settings(overrides={"cache": str(cache), "trove": str(trove)})
    project = Project.find(ROOT, settings, print)
    graph = project.graph(MINIMAL)
    goals = tuple(goal for part in parts for goal in find(graph, part))
    project.push_missing(graph, goals)
    plan = project.plan(graph, goals)
    store = Path(settings.store_url)
    for step in plan.steps:
        manifest = _copy(store, f"manifests/{plan.keys[step.id]}", folder / "undisturbed")
        if step.name in GIVEN:
            _copy(store, f"manifests/{plan.keys[step.id]}", folder / "artifacts")
            for blob in decode(manifest.read_bytes(), manifest.name).blobs():
                if blob.content is None:
                    path = f"blobs/{blob.sha256[:2]}/{blob.sha256}"
                    _copy(store, path, folder / "artifacts")
    definitions = folder / "definitions"
    definitions.mkdir()
    for name in DEFINITIONS:
        subprocess.run(["cp", "-r", ROOT / name, definitions], check=True)
    synthetic.commit(definitions)


def _copy(store: Path, name: str, to: Path) -> Path:
    """Copy a file of a store; returns the copy."""
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(store / name, to / name))
