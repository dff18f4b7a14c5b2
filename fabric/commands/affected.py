"""``affected``: finds the systems that contain a component, or that a vulnerability affects."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric.client.render import table
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.bills import known_bill, require_libraries
from fabric.commands.shared.output import first_of, print_json
from fabric.commands.shared.plans import open_project
from fabric.config import Settings
from fabric.errors import FabricError, command, in_line
from fabric.host.terminal import progress

if TYPE_CHECKING:
    from fabric.sbom.bill import Bill, Component
    from fabric.sbom.osv import Vulnerability

#: Ids of vulnerabilities: CVE-2024-3094, GHSA-..., DSA-5678-1.
_ID = re.compile(
    r"(?:CVE|GHSA|DSA|DLA|DEBIAN-CVE|PYSEC|OSV|UBUNTU-CVE|USN|GO|RUSTSEC)-[\w-]+", re.I
)
#: Vulnerabilities of a component that a line names.
SHOWN = 3


class _Hit(msgspec.Struct, frozen=True):
    """A component of a system that is looked for."""

    system: str  # path of the morph
    name: str
    component: str
    version: str
    purl: str
    in_image: bool
    built: bool  # else the system is known by its definitions only
    vulnerabilities: tuple[str, ...]  # ids, if a feed is searched


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        default="",
        help="NAME, NAME@VERSION, a package URL, or the id of a vulnerability in the feed; without"
        " it, all that the feed has",
    )
    parser.add_argument(
        "--feed", metavar="FILE", type=Path, help="vulnerabilities in OSV's JSON: a file"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    require_libraries()
    find = _finder(options.what, options.feed)
    project = open_project(settings)
    hits, failed = [], []
    systems = project.systems()
    for path in systems:
        try:
            bill = known_bill(project, path)
        except FabricError as error:
            failed.append(path)
            progress(f"{path}: not searched: {str(error).splitlines()[0]}")
            continue
        if not bill.complete:
            progress(
                f"{path}: not built here with these inputs: searched as its definitions describe"
                " it, without the names of Debian's source packages"
            )
        hits += [_hit(path, bill, one, ids) for one, ids in find(bill)]
    if options.json:
        print_json(
            {
                "searched": [path for path in systems if path not in failed],
                "failed": failed,
                "affected": [msgspec.to_builtins(hit) for hit in hits],
            }
        )
    else:
        _print(hits, len(systems) - len(failed))
    return 1 if failed else 0


def _print(hits: list[_Hit], searched: int) -> None:
    if not hits:
        print(f"none of {searched} systems")
        return
    rows = [
        (
            hit.system,
            hit.component,
            hit.version or "-",
            "in the image" if hit.in_image else "built with it",
            first_of(hit.vulnerabilities, SHOWN),
        )
        for hit in hits
    ]
    print("\n".join(table([tuple(in_line(word) for word in row) for row in rows])))
    shipped = sorted({hit.system for hit in hits if hit.in_image})
    print(f"{len(shipped)} of {searched} systems have it in their images")
    for system in shipped:
        print(f"  when it is fixed: {command('build', system)}")


def _hit(path: str, bill: Bill, one: Component, ids: tuple[str, ...]) -> _Hit:
    return _Hit(path, bill.system, one.ref, one.version, one.purl, one.in_image, bill.complete, ids)


Found = Iterator[tuple["Component", tuple[str, ...]]]


def _finder(what: str, feed: Path | None) -> Callable[[Bill], Found]:
    """The function that finds what a user named.  FabricError if the words make no sense."""
    if feed is None:
        if not what:
            raise FabricError("name a component, as NAME or NAME@VERSION, or give --feed FILE")
        if _ID.fullmatch(what):
            raise FabricError(
                f"{what}: what it affects is in a feed: --feed FILE, in OSV's JSON, as its"
                " databases offer it"
            )
        return _by_name(what)
    from fabric.sbom.osv import read_feed

    vulnerabilities = read_feed(feed)
    if what and _ID.fullmatch(what):
        vulnerabilities = [one for one in vulnerabilities if what.upper() in one.names]
        if not vulnerabilities:
            raise FabricError(f"{what}: {feed} has no vulnerability of that id, but for withdrawn")
        return _by_feed(vulnerabilities)
    named, known = _by_name(what) if what else None, _by_feed(vulnerabilities)

    def find(bill: Bill) -> Found:
        refs = {one.ref for one, _ in named(bill)} if named else bill.by_ref.keys()
        return ((one, ids) for one, ids in known(bill) if one.ref in refs)

    return find


def _by_feed(vulnerabilities: list[Vulnerability]) -> Callable[[Bill], Found]:
    from fabric.sbom.osv import Index

    def find(bill: Bill) -> Found:
        index = Index(bill.components)
        ids: dict[str, list[str]] = {}
        for one in vulnerabilities:
            for component in index.affected(one):
                ids.setdefault(component.ref, []).append(one.id)
        for ref in sorted(ids):
            yield bill.by_ref[ref], tuple(sorted(ids[ref]))

    return find


def _by_name(what: str) -> Callable[[Bill], Found]:
    from packageurl import PackageURL

    if what.startswith("pkg:"):
        try:
            given = PackageURL.from_string(what)
        except ValueError as error:
            raise FabricError(f"{in_line(what)}: no package URL: {error}") from None

        def same(one: Component) -> bool:
            purls = (PackageURL.from_string(text) for text in (one.purl, one.origin) if text)
            return any(
                (purl.type, purl.namespace, purl.name) == (given.type, given.namespace, given.name)
                and given.version in (None, purl.version, one.version)
                for purl in purls
            )
    else:
        name, _, version = what.partition("@")

        def same(one: Component) -> bool:
            names = {one.name, one.ref, one.ref.rpartition("/")[2]}
            if one.origin:
                names.add(PackageURL.from_string(one.origin).name)
            return name in names and version in ("", one.version)

    return lambda bill: ((one, ()) for one in bill.components if same(one))
