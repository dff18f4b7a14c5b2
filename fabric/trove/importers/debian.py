"""Debian's source packages and sets of its binary packages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fabric.errors import SourceError, command
from fabric.trove.importers import archive
from fabric.trove.importers.apt import Apt, Stanza
from fabric.trove.importers.commit import Tree, from_files
from fabric.trove.importers.download import Downloads
from fabric.trove.lorries import Locked, Lorry


class MovedError(SourceError):
    """The archive does not offer what a lorry pins (any more)."""


class Orig(msgspec.Struct, frozen=True):
    """What an archive offers of a source package: ``files`` maps component ("": main) to
    (file name, sha256)."""

    version: str  # Debian's, whole
    upstream: str
    files: dict[str, tuple[str, str]]


# -- source packages -------------------------------------------------------------------------


def import_source(lorry: Lorry, apt: Apt, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The trees of the orig tarball and its components.  MovedError if it is not offered."""
    wanted = {"": lorry.sha256, **lorry.components}
    if any(downloads.find(sha256) is None for sha256 in wanted.values()):
        with apt.opened():
            orig = _pinned_orig(lorry, apt)
            if orig is None and apt.update():
                orig = _pinned_orig(lorry, apt)
            if orig is None:
                raise _source_moved(lorry, apt)
            _download_orig(lorry, orig, apt, downloads)
    files = {component: downloads.directory / sha256 for component, sha256 in wanted.items()}
    return [
        (f"{component}/" if component else "", archive.read(file, f"{lorry.package} {component}"))
        for component, file in files.items()
    ]


def offered_origs(package: str, apt: Apt) -> list[Orig]:
    """Everything the archives offer of a source package, newest first."""
    found = []
    for stanza in apt.show_source(package):
        version = stanza["Version"]
        upstream = version.partition(":")[2] or version
        upstream = upstream.rpartition("-")[0] or upstream
        files = {}
        for line in stanza.get("Checksums-Sha256", "").split("\n"):
            match line.split():
                case [sha256, _, name] if (component := _component(name)) is not None:
                    files[component] = (name, sha256)
        found.append(Orig(version, upstream, files))
    return found


def _component(name: str) -> str | None:
    """ "" for the orig tarball (or the only one), "doc" for orig-doc; None for other files."""
    match = re.fullmatch(r"[^_]+_.+\.orig(?:-([A-Za-z0-9-]+))?\.tar\.\w+", name)
    if match:
        return match[1] or ""
    return "" if re.fullmatch(r"[^_]+_[^_]+(?<!\.debian)\.tar\.\w+", name) else None


def _pinned_orig(lorry: Lorry, apt: Apt) -> Orig | None:
    """What is offered with just the pinned tarballs; the Debian revision does not matter."""
    for orig in offered_origs(lorry.package, apt):
        digests = {component: sha256 for component, (_, sha256) in orig.files.items()}
        wanted = {"": lorry.sha256, **lorry.components}
        if all(digests.get(component) == sha256 for component, sha256 in wanted.items()):
            return orig
    return None


def _download_orig(lorry: Lorry, orig: Orig, apt: Apt, downloads: Downloads) -> None:
    request = f"{lorry.package}={orig.version}"
    wanted = ("source", "--download-only", "--tar-only", request)
    with apt.download(*wanted, what=lorry.name) as folder:
        for component, sha256 in {"": lorry.sha256, **lorry.components}.items():
            name, _ = orig.files[component]
            downloads.adopt(folder / name, sha256, name)


def _source_moved(lorry: Lorry, apt: Apt) -> MovedError:
    pinned = f"{lorry.where}: {lorry.name} pins version {lorry.version} of the Debian source"
    advice = f"run `{command('lorry', 'update', lorry.name)}` to take what is offered"
    offered = offered_origs(lorry.package, apt)
    if not offered:
        return MovedError(
            f"{pinned} {lorry.package}, but the archives of this machine have no such source"
            " package: check its name"
        )
    for orig in offered:
        if orig.upstream == lorry.version:
            digests = ", ".join(f"{name} {sha256}" for name, sha256 in orig.files.values())
            return MovedError(
                f"{pinned} {lorry.package} with other digests than those offered ({digests});"
                f" {advice}"
            )
    versions = ", ".join(orig.upstream for orig in offered)
    return MovedError(f"{pinned} {lorry.package}; the archives now offer {versions}; {advice}")


# -- binary packages -------------------------------------------------------------------------


def import_packages(lorry: Lorry, apt: Apt, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The pinned .debs, and ``packages.tsv``: name, version, architecture, sha256, size in bytes
    and file name of each, those that others need first.  MovedError if one is not offered."""
    locked = lorry.locked()
    if not locked:
        raise MovedError(
            f"{lorry.where}: {lorry.name} has no lock file yet;"
            f" run `{command('lorry', 'update', lorry.name)}` to make {lorry.lock_file.name}"
        )
    missing = [one for one in locked if downloads.find(one.sha256) is None]
    if missing:
        with apt.opened():
            gone = _unoffered(missing, apt)
            if gone and apt.update():
                gone = _unoffered(missing, apt)
            if gone:
                raise _packages_moved(lorry, gone, apt)
            _download_packages(lorry, missing, apt, downloads)
    table = "".join("\t".join((*str(one).split(), one.file_name)) + "\n" for one in locked)
    files: list[tuple[str, bytes | Path]] = [("packages.tsv", table.encode())]
    files += [(one.file_name, downloads.directory / one.sha256) for one in locked]
    return [("", from_files(files))]


def resolve_packages(lorry: Lorry, apt: Apt) -> tuple[Locked, ...]:
    """The packages a lorry names with all they need, as offered now; needed ones first."""
    with apt.opened():
        apt.update()
        excluded = _newest(apt.show(*lorry.exclude))
        if unknown := set(lorry.exclude) - excluded.keys():
            raise SourceError(
                f"{lorry.where}: {lorry.name} excludes what the archives do not have:"
                f" {', '.join(sorted(unknown))}"
            )
        apt.suppose_installed(excluded.values())
        closure = apt.simulate_install(lorry.packages)
        wanted = {f"{name}={version}" for name, version in closure}
        offers = {(one["Package"], one["Version"]): one for one in apt.show(*sorted(wanted))}
    found = []
    for name, version in closure:
        stanza = offers.get((name, version))
        if stanza is None or "SHA256" not in stanza:
            raise SourceError(f"{lorry.name}: the archive gives no SHA-256 for {name} {version}")
        found.append(_as_locked(stanza))
    return tuple(found)


def _as_locked(stanza: Stanza) -> Locked:
    return Locked(
        stanza["Package"],
        stanza["Version"],
        stanza["Architecture"],
        stanza["SHA256"],
        int(stanza["Size"]),
    )


def _newest(stanzas: Iterable[Stanza]) -> dict[str, Stanza]:
    """The first, so best, stanza of each package."""
    found: dict[str, Stanza] = {}
    for stanza in stanzas:
        found.setdefault(stanza["Package"], stanza)
    return found


def _unoffered(wanted: Iterable[Locked], apt: Apt) -> list[Locked]:
    wanted = list(wanted)
    offers = apt.show(*sorted({one.name for one in wanted}))
    there = {(one["Package"], one["Version"], one.get("SHA256")) for one in offers}
    return [one for one in wanted if (one.name, one.version, one.sha256) not in there]


def _packages_moved(lorry: Lorry, gone: list[Locked], apt: Apt) -> MovedError:
    offers = _newest(apt.show(*sorted({one.name for one in gone})))
    lines = []
    for one in gone:
        offer = offers.get(one.name)
        if offer is None:
            now = "no longer there"
        elif offer["Version"] == one.version:
            now = "offered with another SHA-256"
        else:
            now = f"now {offer['Version']}"
        lines.append(f"  {one.name} {one.version}: {now}")
    return MovedError(
        f"{lorry.where}: {lorry.name} pins packages that the archives of this machine do not"
        f" offer any more; run `{command('lorry', 'update', lorry.name)}` to renew the pins:\n"
        + "\n".join(lines)
    )


def _download_packages(lorry: Lorry, missing: list[Locked], apt: Apt, downloads: Downloads) -> None:
    what = f"{lorry.name}: {len(missing)} packages"
    requests = [f"{one.name}={one.version}" for one in missing]
    with apt.download("download", *requests, what=what) as folder:
        for one in missing:
            downloads.adopt(folder / one.file_name, one.sha256, one.file_name)
