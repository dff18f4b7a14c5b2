"""``affected``: finds the systems that contain a component, or that a vulnerability affects."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric.client.render import table
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.bills import known_bill, past_builds, require_libraries
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_project
from fabric.config import Settings
from fabric.errors import FabricError, command, first_of, in_line
from fabric.host.terminal import progress
from fabric.trove.sources.lorry_vex import ID, Statement

if TYPE_CHECKING:
    from fabric.sbom.bill import Bill, Component
    from fabric.sbom.builds import Build, Builds
    from fabric.sbom.osv import Vulnerability

    #: Finds components, each with the vulnerabilities that affect it.
    Found = Iterator[tuple[Component, Sequence[Vulnerability]]]
    Find = Callable[[Bill], Found]

#: Vulnerabilities of a component that a line names.
SHOWN = 3


class _Hit(msgspec.Struct, kw_only=True):
    """A component of a system that is looked for."""

    system: str  # path of the morph
    name: str
    component: str
    version: str
    purl: str
    in_image: bool
    current: bool  # whether the definitions have it now; else only earlier builds have it
    built: bool  # whether the system is built as it is now; else it is known by its definitions
    vulnerabilities: tuple[str, ...]  # ids, if a feed is searched
    vex: Statement | None  # what the definitions say of the vulnerability
    builds: list[str] = []  # keys of the builds in the store that have it, the present one included
    since: float = 0.0  # when the first of these was built (Unix time); 0: not known

    @property
    def counts(self) -> bool:
        """Whether the system has it in its image now, and no statement clears it."""
        return self.current and self.in_image and not (self.vex and self.vex.clears)

    @property
    def is_cleared(self) -> bool:
        """Whether the system has it in its image now, and a statement clears it."""
        return self.current and self.in_image and not self.counts


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
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with code 1 if a system of the definitions has it in its image, unless a"
        " statement (`vex`) says that it is fixed or does not affect it",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    require_libraries()
    find = _finder(options.what, options.feed)
    project = open_project(settings)
    hits, failed = _Hits(find), []
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
        hits.add_current(path, bill)
    searched = len(systems) - len(failed)
    try:
        hits.add_builds(past_builds(project))
    except FabricError as error:
        failed.append(project.store.shown)
        progress(f"its builds are not searched: {str(error).splitlines()[0]}")
    found = hits.sorted
    if options.json:
        print_json(
            {
                "searched": [path for path in systems if path not in failed],
                "builds": hits.builds,
                "failed": failed,
                "affected": [msgspec.to_builtins(hit) for hit in found],
            }
        )
    else:
        _print(found, searched, hits.builds)
    return 1 if failed or (options.check and any(hit.counts for hit in found)) else 0


class _Hits:
    """Collects what is found in the systems as they are now, and in builds of them."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._hits: dict[tuple[object, ...], _Hit] = {}
        self._keys: dict[str, list[_Hit]] = {}  # key of a present build -> what is in it
        self.builds = 0  # how many are in the store

    @property
    def sorted(self) -> list[_Hit]:
        """All hits, sorted by system; what a system has now comes after what it had."""

        def rank(hit: _Hit) -> tuple[object, ...]:
            return hit.system, hit.component, hit.current, hit.since, hit.vulnerabilities

        return sorted(self._hits.values(), key=rank)

    def add_current(self, path: str, bill: Bill) -> None:
        """Search a system as it is now."""
        mine = self._keys.setdefault(bill.key, [])
        for one, statement, ids in self._found(bill):
            mine.append(self._hit(path, bill.system, one, statement, ids))
            mine[-1].purl, mine[-1].current, mine[-1].built = one.purl, True, bill.complete

    def add_builds(self, builds: Builds) -> None:
        """Search the store's builds of systems; those that are present were searched before."""
        self.builds = len(builds.systems)
        for build in builds.systems:
            for hit in self._keys.get(build.key, ()):
                _add_build(hit, build)
        earlier = [build for build in builds.systems if build.key not in self._keys]
        bill, places = builds.bill(earlier)
        if builds.unread:
            progress(
                f"earlier builds with {first_of(sorted(builds.unread), SHOWN)}: no SBOM was made of"
                " them, so all packages count that the names of files tell, without source packages"
            )
        if gone := builds.lacking(earlier):
            progress(
                f"earlier builds: {gone} of their chunks are not in the store, and not searched"
            )
        for one, statement, ids in self._found(bill):
            shown = msgspec.structs.replace(one, ref=one.ref.partition("/")[2])
            for build in places[one.ref]:
                _add_build(self._hit(build.morph, build.name, shown, statement, ids), build)

    def _found(self, bill: Bill) -> Iterator[tuple[Component, Statement | None, tuple[str, ...]]]:
        """Components, each with a statement and the ids of the vulnerabilities it is about."""
        for one, vulnerabilities in self._find(bill):
            groups: dict[Statement | None, list[str]] = {} if vulnerabilities else {None: []}
            for each in vulnerabilities:
                groups.setdefault(bill.statement(one, each.names), []).append(each.id)
            for statement, ids in groups.items():
                yield one, statement, tuple(sorted(ids))

    def _hit(
        self,
        path: str,
        name: str,
        one: Component,
        statement: Statement | None,
        ids: tuple[str, ...],
    ) -> _Hit:
        key = (path, name, one.ref, one.version, one.in_image, statement, ids)
        if key not in self._hits:
            self._hits[key] = _Hit(
                system=path,
                name=name,
                component=one.ref,
                version=one.version,
                purl=one.purl,
                in_image=one.in_image,
                current=False,
                built=True,
                vulnerabilities=ids,
                vex=statement,
            )
        return self._hits[key]


def _add_build(hit: _Hit, build: Build) -> None:
    hit.builds.append(build.key)
    if build.built:
        hit.since = min(build.built, hit.since or build.built)


def _print(hits: list[_Hit], searched: int, builds: int) -> None:
    if not hits:
        others = f", nor of {builds} built in the store" * (builds > 0)
        print(f"none of {searched} systems{others}")
        return
    print("\n".join(table([tuple(in_line(word) for word in _row(hit)) for hit in hits])))
    shipped = sorted({hit.system for hit in hits if hit.counts})
    cleared = {hit.system for hit in hits if hit.is_cleared}
    past = {key for hit in hits if not hit.current for key in hit.builds}
    what = "are affected" if hits[0].vulnerabilities else "have it in their images"
    print(f"{len(shipped)} of {searched} systems {what}")
    for system in shipped:
        print(f"  when it is fixed: {command('build', system)}")
    if cleared:
        print(f"not affected or fixed, as the definitions state: {len(cleared)}")
    if past:
        print(f"earlier builds in the store that have it: {len(past)}")
        print("  replace the images that were made of them")


def _row(hit: _Hit) -> tuple[str, ...]:
    place = "in the image" if hit.in_image else "built with it"
    state = f"{hit.vex.status}: {hit.vex.why}" if hit.vex and hit.vex.why else ""
    return (
        hit.system,
        hit.component,
        hit.version or "-",
        place if hit.current else "in earlier builds",
        first_of(hit.vulnerabilities, SHOWN),
        state or (hit.vex.status if hit.vex else ""),
        f"since {datetime.fromtimestamp(hit.since, UTC):%Y-%m-%d}" if hit.since else "",
    )


def _finder(what: str, feed: Path | None) -> Find:
    """The function that finds what a user named.  FabricError if the words make no sense."""
    if feed is None:
        if not what:
            raise FabricError("name a component, as NAME or NAME@VERSION, or give --feed FILE")
        if ID.fullmatch(what):
            raise FabricError(
                f"{what}: what it affects is in a feed: --feed FILE, in OSV's JSON, as its"
                " databases offer it"
            )
        return _by_name(what)
    from fabric.sbom.osv import read_feed

    vulnerabilities = read_feed(feed)
    if what and ID.fullmatch(what):
        vulnerabilities = [one for one in vulnerabilities if what.upper() in one.names]
        if not vulnerabilities:
            raise FabricError(f"{what}: {feed} has no vulnerability of that id, but for withdrawn")
        return _by_feed(vulnerabilities)
    named, known = _by_name(what) if what else None, _by_feed(vulnerabilities)

    def find(bill: Bill) -> Found:
        refs = {one.ref for one, _ in named(bill)} if named else bill.by_ref.keys()
        return ((one, why) for one, why in known(bill) if one.ref in refs)

    return find


def _by_feed(vulnerabilities: list[Vulnerability]) -> Find:
    from fabric.sbom.osv import Index

    def find(bill: Bill) -> Found:
        index = Index(bill.components)
        found: dict[str, list[Vulnerability]] = {}
        for one in vulnerabilities:
            for component in index.affected(one):
                found.setdefault(component.ref, []).append(one)
        for ref in sorted(found):
            yield bill.by_ref[ref], found[ref]

    return find


def _by_name(what: str) -> Find:
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
    elif what.startswith("cpe:"):
        raise FabricError(f"{in_line(what)}: search by the name or the package URL, not by a CPE")
    else:
        name, _, version = what.partition("@")

        def same(one: Component) -> bool:
            names = {one.name, one.ref}
            if one.origin:
                names.add(PackageURL.from_string(one.origin).name)
            is_named = name in names or one.ref.endswith(f"/{name}")
            return is_named and version in ("", one.version)

    return lambda bill: ((one, ()) for one in bill.components if same(one))
