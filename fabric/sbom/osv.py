"""Reads vulnerabilities in OSV's JSON, and tells which components they affect.

A feed is a file with one record, a list of records, or a record on each line.  It is a stranger's:
it has bounds, and a record that is not in the form of the schema is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from debian.debian_support import NativeVersion
from msgspec import Meta
from packageurl import PackageURL
from packaging.version import InvalidVersion, Version

from fabric import bounds
from fabric.errors import FabricError, in_line
from fabric.host.files import read_regular
from fabric.sbom.bill import Component
from fabric.sbom.identifiers import pypi, repository

_Text = Annotated[str, Meta(max_length=1000)]


class _Package(msgspec.Struct):
    name: _Text = ""
    ecosystem: _Text = ""
    purl: _Text = ""


class _Event(msgspec.Struct):
    introduced: _Text = ""
    fixed: _Text = ""
    last_affected: _Text = ""


class _Range(msgspec.Struct):
    type: str = ""
    repo: _Text = ""
    events: list[_Event] = []


class _Affected(msgspec.Struct):
    package: _Package | None = None
    versions: list[_Text] = []
    ranges: list[_Range] = []


class Vulnerability(msgspec.Struct):
    """A record of OSV's schema: the fields that are used here."""

    id: _Text
    aliases: list[_Text] = []
    summary: str = ""
    withdrawn: str = ""
    affected: list[_Affected] = []

    @property
    def names(self) -> set[str]:
        """Its id and the ids that others gave it, in upper case."""
        return {name.upper() for name in (self.id, *self.aliases)}


_decode = msgspec.json.Decoder(Vulnerability).decode
_decode_list = msgspec.json.Decoder(list[Vulnerability]).decode


def read_feed(path: Path) -> list[Vulnerability]:
    """The vulnerabilities in a feed that are not withdrawn.  FabricError if it is none."""
    try:
        data = read_regular(path, bounds.FEED)
    except OSError as error:
        raise FabricError(f"{path}: the feed cannot be read: {error.strerror}") from None
    found = list(_records(path, data))
    if len(found) > bounds.FEED_RECORDS:
        most = f"{bounds.FEED_RECORDS:,} records"
        raise FabricError(f"{path}: the feed has more than {most}, the limit: split it")
    return [one for one in found if not one.withdrawn]


def _records(path: Path, data: bytes) -> Iterator[Vulnerability]:
    form = "not OSV's JSON: a record, a list of records, or a record on each line"
    try:
        if data.lstrip()[:1] == b"[":
            yield from _decode_list(data)
            return
        lines = data.splitlines()
        if len(lines) > 1 and lines[0].strip().endswith(b"}"):
            for number, line in enumerate(lines, 1):
                form = f"line {number}: not a record of OSV's JSON"
                if line.strip():
                    yield _decode(line)
        else:
            yield _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FabricError(f"{path}: {form}: {in_line(error)}") from None


# -- which components ------------------------------------------------------------------------


class Index:
    """The components of a bill by the names that vulnerabilities have for them."""

    def __init__(self, components: Iterable[Component]) -> None:
        self._by_name: dict[tuple[str, str], list[tuple[Component, str]]] = {}
        self._releases: dict[str, int] = {}  # set of packages -> the newest that a version names
        for one in components:
            if one.kind == "package":
                newest = max(self._releases.get(one.within, 0), _update_of(one.version))
                self._releases[one.within] = newest
            for name, version in _names(one):
                self._by_name.setdefault(name, []).append((one, version))

    def affected(self, vulnerability: Vulnerability) -> list[Component]:
        """The components that a vulnerability affects, each once."""
        found: dict[str, Component] = {}
        given = [(name, one) for one in vulnerability.affected for name in _named(one)]
        listed = {(name, _release(affected)) for name, affected in given}
        for name, affected in given:
            for one, version in self._by_name.get(name, ()):
                release = self._release_of(one, version)
                if (name, release) in listed and _is_of_another(affected, version, release):
                    continue
                if _is_affected(affected, version, name[0]):
                    found[one.ref] = one
        return [found[ref] for ref in sorted(found)]

    def _release_of(self, one: Component, version: str) -> int:
        """The release of Debian that a version names, or others of its set; 0 if none does."""
        return _update_of(version) or self._releases.get(one.within, 0)


def _names(one: Component) -> Iterator[tuple[tuple[str, str], str]]:
    """((kind, name), version) of a component; a Debian package has the name of its source, too."""
    for text in (one.purl, one.origin):
        if text:
            purl = PackageURL.from_string(text)
            version = one.version if purl.type == "github" else purl.version
            yield _key(purl), version or one.version


def _named(affected: _Affected) -> Iterator[tuple[str, str]]:
    """(kind, name) of what a record affects: by its purl, its ecosystem, and its repository."""
    package = affected.package or _Package()
    ecosystem = package.ecosystem.partition(":")[0]
    if package.purl:
        with suppress(ValueError):
            yield _key(PackageURL.from_string(package.purl))
    elif ecosystem in ("Debian", "Ubuntu"):
        yield "deb", f"{ecosystem}/{package.name}".lower()
    elif ecosystem == "PyPI" and package.name:
        yield _key(PackageURL.from_string(pypi(package.name, "")))
    for repo in {one.repo for one in affected.ranges if one.type == "GIT" and one.repo}:
        with suppress(ValueError):
            yield _key(PackageURL.from_string(repository("x", "", repo, "0")))


def _release(affected: _Affected) -> int:
    """The release of Debian that a record speaks of; 0 if it names none."""
    kind, _, release = affected.package.ecosystem.partition(":") if affected.package else ("",) * 3
    return int(release) if kind == "Debian" and release.isdecimal() else 0


def _update_of(version: str) -> int:
    """The release of Debian for which a version was made as an update; 0 if for none."""
    found = _UPDATE.search(version)
    return int(found[1]) if found else 0


def _is_of_another(affected: _Affected, version: str, release: int) -> bool:
    """Whether a record speaks of another release of Debian than that of a package.

    An update of 13 may also be in 14 for a while.  So a set of packages with one is of 13 or later,
    and only a version that names its release itself is surely of no later one.
    """
    other = _release(affected)
    return 0 < other < release or (_update_of(version) > 0 and other > release)


def _key(purl: PackageURL) -> tuple[str, str]:
    place = f"{purl.namespace}/" if purl.namespace else ""
    return purl.type, f"{place}{purl.name}".lower()


def _is_affected(affected: _Affected, version: str, kind: str) -> bool:
    """Whether a version is listed, or in one of the ranges.  Commits are not compared.

    What is no version, as the name of a branch, may be any: it is in each range.
    """
    if version in affected.versions or f"v{version}" in affected.versions:
        return True
    if not affected.ranges:
        return not affected.versions
    ranges = [one for one in affected.ranges if one.type != "GIT"]
    if _is_no_version(version):
        return bool(ranges)
    return any(_in_range(one, version, kind) for one in ranges)


def _in_range(given: _Range, version: str, kind: str) -> bool:
    """OSV's algorithm: the last event before the version, or at it, decides."""
    events = [
        (at, into, after)
        for event in given.events
        for at, into, after in (
            (event.introduced, True, False),
            (event.fixed, False, False),
            (event.last_affected, False, True),
        )
        if at
    ]
    order = _order(kind, [version, *(at for at, _, _ in events)])
    mine, inside = order(version), False
    for at, into, after in sorted(((order(at), into, after) for at, into, after in events)):
        if at < mine or (at == mine and not after):
            inside = into
    return inside


def _order(kind: str, versions: Iterable[str]) -> Callable[[str], tuple[int, Any]]:
    """A key for these versions, in the order of their kind if all are versions of it."""
    of_kind: Callable[[str], Any] = _parts
    given = [one for one in versions if one != _FIRST]
    if kind == "deb" and all(_DEBIAN.fullmatch(one) for one in given):
        of_kind = NativeVersion
    elif kind == "pypi" and all(_is_version(one) for one in given):
        of_kind = Version
    return lambda one: (0, 0) if one == _FIRST else (1, of_kind(one))


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


#: Before all versions.
_FIRST = "0"
_DEBIAN = re.compile(r"(?:[0-9]+:)?[0-9][A-Za-z0-9.+~-]*")
#: 1.0-1+deb13u2 and 1.0-1~deb13u2 are updates of Debian 13; 1.0-1+deb13u2~bpo12+1 is not.
_UPDATE = re.compile(r"[+~]deb([0-9]{1,3})u[0-9.]+(?:\+b[0-9]+)?$")
_PART = re.compile(
    r"(?P<number>[0-9]{1,18})"
    r"|(?P<early>(?:alpha|beta|cr|dev|milestone|pre|preview|rc|snapshot)(?![a-z])|[abcm](?=[0-9]))"
    r"|(?P<late>[a-z]+)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]")
#: A commit in place of a version.
_COMMIT = re.compile(r"[0-9a-f]{40}|(?=[0-9]*[a-f])[0-9a-f]{12}")


def _is_no_version(text: str) -> bool:
    return _NUMBER.search(text) is None or _COMMIT.fullmatch(text) is not None


def _parts(version: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts 1.0rc1 < v1.0 = 1.0.0 < 1.0p1 < 1.0.1 < 1.10.

    A word before the first number is the name of a tag, as in openssl-3.0.1.
    """
    parts: list[tuple[int, int, str]] = []
    begin = _NUMBER.search(version)
    for one in _PART.finditer(version, begin.start() if begin else 0):
        if number := one["number"]:
            parts.append((3, int(number), ""))
        else:
            _drop_zeros(parts)
            parts.append((2 if one["late"] else 0, 0, one[0].lower()))
    _drop_zeros(parts)
    return (*parts, (1, 0, ""))


def _drop_zeros(parts: list[tuple[int, int, str]]) -> None:
    while parts and parts[-1] == (3, 0, ""):
        parts.pop()
