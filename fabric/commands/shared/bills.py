"""Makes the bill of materials of a system, and writes it in a format."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from typing import TYPE_CHECKING

from fabric.commands.shared.plans import healing, open_graph, open_plan, plan_of
from fabric.config import Settings
from fabric.errors import DamagedError, FabricError, command, in_line
from fabric.host.terminal import progress
from fabric.jobs import LATEST
from fabric.plan import Plan, wanted_sources
from fabric.trove.sources.lorry_fields import SUPPLIER

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.definitions.graph import Graph
    from fabric.jobs import Manifest
    from fabric.sbom.bill import Bill, Party
    from fabric.sbom.builds import Builds

#: Format -> the module of `fabric.sbom` that writes it.
FORMATS = {
    "spdx-json": "spdx3",
    "spdx-2.3-json": "spdx2",
    "cyclonedx-json": "cyclonedx",
    "openvex-json": "openvex",
}


def add_author(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--author",
        metavar="PARTY",
        help="who makes the system and its SBOM: 'NAME <EMAIL or URL>'",
    )


def author_of(text: str | None) -> Party | None:
    """The party of ``--author``.  FabricError if it is none."""
    from fabric.sbom.bill import Party

    if text and not SUPPLIER.fits(text):
        raise FabricError(f"--author {in_line(text)}: write it {SUPPLIER.meaning}")
    return Party.parse(text or "")


def require_libraries() -> None:
    """FabricError if a library that SBOMs need is not installed."""
    try:
        for name in ("licenseclassifier", "packageurl", "license_expression"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FabricError(
            f"an SBOM needs {error.name}, which is not installed: pip install 'distbuild[sbom]'"
        ) from None


def planned_bill(settings: Settings, system: str, author: str | None, *, locked: bool) -> Bill:
    """The bill of a system as its definitions describe it; no repository is accessed."""
    require_libraries()
    party, time = author_of(author), created()
    project, graph = open_graph(settings, system)
    if locked:
        project.require_pins(graph)
    return _planned(project, graph, time, party)


def known_bill(project: Project, path: str) -> Bill:
    """The bill of a system: of what is in the store, or without that of its definitions.

    Nothing is imported or fetched.
    """
    graph = project.graph(path)
    wanted = wanted_sources(graph, [graph.root.id]).values()
    if all(project.sources.at_hand(repo, ref) for repo, ref, _ in wanted):
        plan = plan_of(project, graph)
        try:
            manifest = project.store.manifest(plan.keys[graph.root.id])
            if manifest is not None:
                return _built(project, plan, manifest)
        except DamagedError as error:
            progress(f"{path}: {error}")
    return _planned(project, graph)


def past_builds(project: Project) -> Builds:
    """The builds of systems in the store.  StoreError.  Nothing is imported or fetched."""
    from fabric.sbom.builds import Builds
    from fabric.sbom.built import Finder

    finder = Finder(project.store, project.sources, project.settings.sbom_dir, progress)
    return Builds(project.store, project.sources, finder.known, progress)


def _planned(project: Project, graph: Graph, time: int = 0, author: Party | None = None) -> Bill:
    from fabric.sbom.collect import collect

    lorries = project.sources.lorries
    return collect(graph, lorries, tool=version(), created=time, author=author)


def built_bill(
    settings: Settings, system: str, author: str | None, *, locked: bool, files: bool = False
) -> Bill:
    """The bill of a system that is built, with its ``files`` if wanted.  FabricError if it is not
    built.
    """
    require_libraries()
    party, time = author_of(author), created()
    project, plan = open_plan(settings, system, [], locked=locked)
    with healing(project, plan):
        manifest = project.store.manifest(plan.keys[plan.graph.root.id])
        if manifest is None:
            raise FabricError(
                f"{plan.graph.system}: not built yet with these inputs; run:"
                f" {command('build', system)}; or see what its definitions say:"
                f" {command('sbom', system, '--planned')}"
            )
        return _built(project, plan, manifest, time, party, files=files)


def _built(
    project: Project,
    plan: Plan,
    manifest: Manifest,
    time: int = 0,
    author: Party | None = None,
    *,
    files: bool = False,
) -> Bill:
    from fabric.sbom.built import Finder
    from fabric.sbom.collect import collect

    project.store.use([manifest.key])
    folder = project.settings.sbom_dir
    finder = Finder(project.store, project.sources, folder, progress)
    return collect(
        plan.graph,
        project.sources.lorries,
        tool=version(),
        created=time,
        author=author,
        built=finder.built(plan, manifest, project.edited(plan.graph), files=files),
    )


def written(bill: Bill, form: str) -> bytes:
    """The bill in a format of `FORMATS`."""
    try:
        module = importlib.import_module(f"fabric.sbom.{FORMATS[form]}")
    except ModuleNotFoundError as error:
        raise FabricError(
            f"{form} needs {error.name}, which is not installed: pip install 'distbuild[sbom]'"
        ) from None
    document = module.write(bill)
    assert isinstance(document, bytes)
    return document


def created() -> int:
    """The time of an SBOM: that in SOURCE_DATE_EPOCH, else 1970.  FabricError if it is no time."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "") or "0"
    if not re.fullmatch("[0-9]{1,12}", text) or int(text) > LATEST:
        raise FabricError(
            f"SOURCE_DATE_EPOCH is {in_line(text)!r}, and must be seconds since 1970, as"
            " `git log -1 --format=%ct` prints them"
        )
    return int(text)


def version() -> str:
    """The version of this program."""
    from importlib.metadata import version as of

    return of("distbuild")
