"""Imports Debian's source packages and sets of its binary packages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from fabric.digest import Digest
from fabric.errors import SourceError, command
from fabric.trove.importers import archive
from fabric.trove.importers.apt import Apt, Stanza
from fabric.trove.importers.commit import Tree, from_files
from fabric.trove.importers.download import Downloads, WrongDigest
from fabric.trove.sources.lock_files import Locked, is_line
from fabric.trove.sources.lorries import Lorry


class MovedError(SourceError):
    """The archive does not offer a pinned file (any more)."""


class Orig(msgspec.Struct, frozen=True):
    """An offered source package: ``files`` maps component ("": main) to (file name, sha256)."""

    version: str  # Debian's, whole
    upstream: str
    files: dict[str, tuple[str, Digest]]
    changes: tuple[str, Digest] | None = None  # the archive with Debian's patches
    format: str = ""

    @property
    def revision(self) -> str:
        """Debian's version without its epoch."""
        return self.version.partition(":")[2] or self.version

    def pinned_as(self, lorry: Lorry) -> str:
        """Its version as a lorry pins it."""
        return self.revision if lorry.debian_patches else self.upstream


# -- source packages -------------------------------------------------------------------------


def import_source(lorry: Lorry, apt: Apt, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The trees of the orig tarball and its components.  MovedError if it is not offered."""
    wanted = lorry.digests
    needed = [*wanted.values(), *filter(None, [lorry.debian_sha256])]
    if any(downloads.find(sha256) is None for sha256 in needed):
        with apt.opened():
            origs = _pinned_origs(lorry, apt)
            if not origs and apt.update():
                origs = _pinned_origs(lorry, apt)
            if not origs:
                raise _source_moved(lorry, apt)
            _download_from_any(lorry, origs, apt, downloads)
    return [
        (
            f"{component}/" if component else "",
            archive.read(downloads.path(sha256), f"{lorry.package} {component}".strip()),
        )
        for component, sha256 in wanted.items()
    ]


def offered_origs(package: str, apt: Apt) -> list[Orig]:
    """All versions of a source package that the archives offer, newest first."""
    found = []
    for stanza in apt.show_source(package):
        version = stanza["Version"]
        upstream = version.partition(":")[2] or version
        upstream = upstream.rpartition("-")[0] or upstream
        files, changes = {}, None
        for line in stanza.get("Checksums-Sha256", "").split("\n"):
            with contextlib.suppress(ValueError):
                match line.split():
                    case [sha256, _, name] if (component := _component(name)) is not None:
                        files[component] = (name, Digest(sha256))
                    case [sha256, _, name] if re.fullmatch(r"[^/]+\.debian\.tar\.\w+", name):
                        changes = (name, Digest(sha256))
        found.append(Orig(version, upstream, files, changes, stanza.get("Format", "").strip()))
    return found


def _component(name: str) -> str | None:
    """ "" for the orig tarball (or the only one), "doc" for orig-doc; None for other files."""
    match = re.fullmatch(r"[^_/]+_[^/]+\.orig(?:-([A-Za-z0-9-]+))?\.tar\.\w+", name)
    if match:
        return match[1] or ""
    return "" if re.fullmatch(r"[^_/]+_[^_/]+(?<!\.debian)\.tar\.\w+", name) else None


def _pinned_origs(lorry: Lorry, apt: Apt) -> list[Orig]:
    """Offered versions with the pinned files; otherwise, the Debian revision does not matter."""
    found = []
    for orig in offered_origs(lorry.package, apt):
        digests = {component: sha256 for component, (_, sha256) in orig.files.items()}
        same = not lorry.debian_patches or (orig.changes or ("", None))[1] == lorry.debian_sha256
        if same and lorry.digests.items() <= digests.items():
            found.append(orig)
    return found


def _download_from_any(lorry: Lorry, origs: Sequence[Orig], apt: Apt, downloads: Downloads) -> None:
    """Download from the first that works: an archive may be behind its own index."""
    for orig in origs[:-1]:
        try:
            _download_orig(lorry, orig, apt, downloads)
        except SourceError:
            continue
        return
    _download_orig(lorry, origs[-1], apt, downloads)


def _download_orig(lorry: Lorry, orig: Orig, apt: Apt, downloads: Downloads) -> None:
    request = f"{lorry.package}={orig.version}"
    tarballs = [(orig.files[component][0], sha256) for component, sha256 in lorry.digests.items()]
    wanted = [("--tar-only", tarballs)]
    if lorry.debian_patches and orig.changes:
        wanted.append(("--diff-only", [orig.changes]))
    for kind, files in wanted:
        if all(downloads.find(sha256) for _, sha256 in files):
            continue
        command = ("source", "--download-only", kind, "--", request)
        with apt.download(*command, what=lorry.name) as folder:
            for name, sha256 in files:
                downloads.adopt(folder / name, sha256, name, f"{lorry.where}: {lorry.name}")


def _source_moved(lorry: Lorry, apt: Apt) -> SourceError:
    pinned = f"{lorry.where}: {lorry.name} pins version {lorry.version} of the Debian source"
    offered = offered_origs(lorry.package, apt)
    if not offered:
        return MovedError(
            f"{pinned} {lorry.package}, but the archives of this machine have no such source"
            " package: check its name"
        )
    for orig in offered:
        if orig.pinned_as(lorry) != lorry.version:
            continue
        files = [(orig.files.get(name), sha256) for name, sha256 in lorry.digests.items()]
        if lorry.debian_sha256:
            files.append((orig.changes, lorry.debian_sha256))
        for file, sha256 in files:
            if file is not None and file[1] != sha256:
                where = f"{lorry.where}: {lorry.name}: {file[0]}"
                return WrongDigest(where, sha256, file[1], "the Debian archives of this machine")
    versions = ", ".join(dict.fromkeys(orig.pinned_as(lorry) for orig in offered))
    return MovedError(
        f"{pinned} {lorry.package}; the archives now offer {versions};"
        f" `{command('lorry', 'update', lorry.name)}` takes the newest if it is newer; or set"
        " `debian-snapshot` to a time at which it was offered"
    )


# -- binary packages -------------------------------------------------------------------------


def import_packages(lorry: Lorry, apt: Apt, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The pinned .debs, and ``packages.tsv``: name, version, architecture, sha256, size in bytes
    and file name of each, dependencies first.  MovedError if one is not offered."""
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
    files += [(one.file_name, downloads.path(one.sha256)) for one in locked]
    return [("", from_files(files))]


def resolve_packages(lorry: Lorry, apt: Apt) -> tuple[Locked, ...]:
    """The packages of a lorry with their dependencies, as offered now; dependencies first."""
    with apt.opened():
        apt.update()
        excluded = _newest(apt.show(*lorry.exclude))
        if unknown := set(lorry.exclude) - excluded.keys():
            raise SourceError(
                f"{lorry.where}: {lorry.name} excludes packages that the archives do not have:"
                f" {', '.join(sorted(unknown))}"
            )
        apt.suppose_installed(excluded.values())
        closure = apt.simulate_install(lorry.packages)
        wanted = {f"{name}={version}" for name, version in closure}
        offers = {(one["Package"], one["Version"]): one for one in apt.show(*sorted(wanted))}
    found = []
    for name, version in closure:
        stanza = offers.get((name, version), {})
        try:
            one = Locked(
                stanza["Package"],
                stanza["Version"],
                stanza["Architecture"],
                Digest(stanza["SHA256"]),
                int(stanza["Size"]),
            )
        except (KeyError, ValueError):
            raise SourceError(
                f"{lorry.name}: the archive gives no SHA-256 and size for {name} {version}"
            ) from None
        if not is_line(lorry.type, one):
            raise SourceError(f"{lorry.name}: the archive offers an invalid package: {str(one)!r}")
        found.append(one)
    return tuple(found)


def _newest(stanzas: Iterable[Stanza]) -> dict[str, Stanza]:
    """The first, so newest, stanza of each package."""
    found: dict[str, Stanza] = {}
    for stanza in stanzas:
        found.setdefault(stanza["Package"], stanza)
    return found


def _unoffered(wanted: Iterable[Locked], apt: Apt) -> list[Locked]:
    wanted = list(wanted)
    offers = apt.show(*sorted({one.name for one in wanted}))
    there = {(one["Package"], one["Version"], one.get("SHA256")) for one in offers}
    return [one for one in wanted if (one.name, one.version, one.sha256) not in there]


def _packages_moved(lorry: Lorry, gone: list[Locked], apt: Apt) -> SourceError:
    offered = apt.show(*sorted({one.name for one in gone}))
    for one in gone:
        for stanza in offered:
            if (stanza["Package"], stanza["Version"]) == (one.name, one.version):
                where = f"{lorry.where}: {lorry.name}: {one.name} {one.version}"
                by = "the Debian archives of this machine"
                return WrongDigest(where, one.sha256, stanza.get("SHA256", "none"), by)
    offers = _newest(offered)
    lines = []
    for one in gone:
        offer = offers.get(one.name)
        now = "no longer there" if offer is None else f"now {offer['Version']}"
        lines.append(f"  {one.name} {one.version}: {now}")
    return MovedError(
        f"{lorry.where}: {lorry.name} pins packages that the archives of this machine do not"
        f" offer any more; run `{command('lorry', 'update', lorry.name)}` to renew the pins, or set"
        " `debian-snapshot` to a time at which they were offered:\n" + "\n".join(lines)
    )


def _download_packages(lorry: Lorry, missing: list[Locked], apt: Apt, downloads: Downloads) -> None:
    what = f"{lorry.name}: {len(missing)} packages"
    requests = [f"{one.name}={one.version}" for one in missing]
    with apt.download("download", "--", *requests, what=what) as folder:
        for one in missing:
            where = f"{lorry.where}: {lorry.name}"
            downloads.adopt(folder / one.file_name, one.sha256, one.file_name, where)
