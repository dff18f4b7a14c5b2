"""Renews the pins of lorries: queries the archives, imports, then writes the new pins.

An update never selects an older version, a withdrawn file, or another file under the same version.
It writes only when version, digests and the imported tree are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from fabric.digest import Digest
from fabric.errors import SourceError
from fabric.trove.importers import debian, pypi, wheels
from fabric.trove.importers.context import Context
from fabric.trove.importers.download import WrongDigest, shown
from fabric.trove.sources.lock_files import Lock, Locked
from fabric.trove.sources.lorries import Lorry, default_ref
from fabric.trove.sources.pins import describe, versions_of, write


def update(lorry: Lorry, context: Context, run: Callable[[Lorry], str] | None) -> list[str]:
    """Pin the newest offered version, if it is newer, and write the pins into the lorry's files.

    ``run`` imports what a lorry pins, and returns the tree; without it, nothing is written.  Return
    the changes, and the versions that were skipped, a line each.  SourceError if nothing is
    offered; of that, WrongDigest if the pinned version is offered with other files.
    """
    if lorry.type == "git":
        return []  # nothing is pinned: strata name commits, tags or branches
    skipped: list[str] = []
    try:
        lorry.lock  # noqa: B018  read now
    except SourceError as error:
        skipped.append(f"the lock file is made anew: {error}")
        lorry = lorry.with_lock(Lock())
    offered = _with_components(_offered(lorry, context, skipped), context)
    if run is None:
        return describe(lorry, offered.with_tree(lorry.recorded_tree)) + skipped
    if not offered.recorded_tree or offered.is_derived:
        offered = offered.with_tree(run(offered.with_tree("")))
    write(lorry, offered)
    return describe(lorry, offered) + skipped


def _offered(lorry: Lorry, context: Context, skipped: list[str]) -> Lorry:
    """The lorry with its new pins; without a tree if they differ from the old ones."""
    match lorry.type:
        case "debian-packages":
            packages = debian.resolve_packages(lorry, context.apt(lorry))
            return _with_packages(lorry, packages, _debian_version())
        case "pypi-wheels":
            from packaging.version import Version

            packages = wheels.resolve_wheels(
                lorry, context.downloads, context.progress, context.cancel
            )
            return _with_packages(lorry, packages, Version)
        case "tarball":
            _, sha256 = context.downloads.any_of(lorry.url)
            return _with_digests(lorry, lorry.version, {"": sha256}, shown(lorry.url))
        case "pypi":
            return _newest_sdist(lorry, context, skipped)
    return _newest_source(lorry, context, skipped)


def _with_packages(lorry: Lorry, packages: tuple[Locked, ...], order: Callable[..., Any]) -> Lorry:
    """The lorry with other packages.  SourceError if one is older than the one it pins."""
    if packages == lorry.lock.packages:
        return lorry
    now = {one.name: one.version for one in packages}
    older = [
        f"  {name}: {version} is pinned, {now[name]} is offered"
        for name, version in versions_of(lorry).items()
        if name in now and _is_newer(version, now[name], order)
    ]
    if older:
        raise SourceError(
            f"{lorry.where}: {lorry.name} is not updated, since the archives offer older packages"
            " than are pinned:\n" + "\n".join(older) + "\n"
            "The mirror may be behind, or an attacker offers old faults. If it is intended,"
            f" remove {lorry.lock_file.name} first."
        )
    return lorry.with_lock(Lock(packages))


def _newest_sdist(lorry: Lorry, context: Context, skipped: list[str]) -> Lorry:
    from packaging.version import Version

    offered = pypi.offered_sdists(lorry.package, context.downloads.directory)
    if lorry.version and not lorry.sha256:  # its author has chosen
        chosen = next((one for one in offered if one.version == lorry.version), None)
        if chosen is None:
            raise _not_offered(lorry, [one.version for one in offered])
    else:
        chosen = pypi.newest(offered)
        yanked = {one.version for one in offered if one.yanked}
        for version in sorted(yanked):
            if _is_newer(version, chosen.version if chosen else lorry.version, Version):
                skipped.append(f"skipped {version}: its authors have yanked it")
    if chosen is None or _is_newer(lorry.version, chosen.version, Version):
        best = chosen.version if chosen else "nothing that is not yanked"
        skipped.append(f"skipped {best}: {lorry.version} is pinned, which is newer")
        return lorry
    if lorry.version == chosen.version:  # perhaps in several kinds of archives
        same = (one for one in offered if one.version == lorry.version)
        chosen = next((one for one in same if one.sha256 == lorry.sha256), chosen)
    return _with_digests(lorry, chosen.version, {"": chosen.sha256}, shown(chosen.url))


def _newest_source(lorry: Lorry, context: Context, skipped: list[str]) -> Lorry:
    apt = context.apt(lorry)
    with apt.opened():
        apt.update()
        offered = debian.offered_origs(lorry.package, apt)
    if not offered:
        raise SourceError(
            f"{lorry.where}: the archives of this machine have no source package {lorry.package}"
        )
    chosen = offered[0]
    if lorry.version and not lorry.sha256:  # its author has chosen
        named = (lorry.version in (one.pinned_as(lorry), one.upstream) for one in offered)
        found = next((one for one, same in zip(offered, named, strict=True) if same), None)
        if found is None:
            raise _not_offered(lorry, [one.pinned_as(lorry) for one in offered])
        chosen = found
    version = chosen.pinned_as(lorry)
    if _is_newer(lorry.version, version, _debian_version()):
        skipped.append(
            f"skipped {version}: {lorry.version} is pinned, which is newer;"
            " the archives offer nothing above it"
        )
        return lorry
    missing = {"", *lorry.components} - chosen.files.keys()
    if missing:
        raise SourceError(
            f"{lorry.where}: {lorry.package} {chosen.version} has no orig tarball"
            f" {', '.join(sorted(missing)) or '(the main one)'}: change the lorry by hand"
        )
    digests = {name: chosen.files[name][1] for name in ("", *lorry.components)}
    for one in offered:  # another Debian revision may have the pinned files
        same = {name: sha256 for name, (_, sha256) in one.files.items()}
        if one.upstream == chosen.upstream and lorry.sha256 == same.get(""):
            digests = {name: same.get(name, digest) for name, digest in digests.items()}
    origin = "the Debian archives of this machine"
    made = _with_digests(lorry, version, digests, origin)
    return _with_changes(lorry, made, chosen, origin) if lorry.debian_patches else made


def _with_changes(lorry: Lorry, made: Lorry, chosen: debian.Orig, origin: str) -> Lorry:
    """``made``, with the archive of Debian's patches.  WrongDigest as `_with_digests`."""
    if chosen.changes is None:
        raise SourceError(
            f"{lorry.where}: {lorry.package} {chosen.version} has no archive of patches, since its"
            f" format is {chosen.format or 'unknown'}, and not 3.0 (quilt): remove 'debian-patches'"
        )
    name, sha256 = chosen.changes
    known = lorry.debian_sha256
    if known == sha256:
        return made
    if known and lorry.version == made.version:
        raise WrongDigest(f"{lorry.where}: {lorry.name}: {name}", known, sha256, origin)
    return replace(made, debian_sha256=sha256, tree="")


def _with_components(lorry: Lorry, context: Context) -> Lorry:
    """The lorry with the digests of its components.

    WrongDigest if an archive has changed under its URL.
    """
    parts = dict(lorry.parts)
    for path, part in parts.items():
        if part.lorry:
            continue
        _, sha256 = context.downloads.any_of(part.url)
        if part.sha256 and part.sha256 != sha256:
            where = f"{part.where}: {lorry.name}: component {path!r}"
            raise WrongDigest(where, part.sha256, sha256, shown(part.url))
        parts[path] = msgspec.structs.replace(part, sha256=sha256)
    return lorry if parts == lorry.parts else replace(lorry, parts=parts, tree="")


def _with_digests(lorry: Lorry, version: str, digests: Mapping[str, Digest], origin: str) -> Lorry:
    """The lorry with another version.  WrongDigest if only what is offered under it differs."""
    known = {"": lorry.sha256, **lorry.components} if lorry.sha256 else {}
    if lorry.version == version:
        for component, sha256 in digests.items():
            if known.get(component, sha256) != sha256:
                where = f"{lorry.where}: {' '.join((lorry.name, version, component))}".strip()
                raise WrongDigest(where, known[component], sha256, origin)
        if known:
            return lorry
    ref = lorry.ref if "ref" in lorry.lines else default_ref(version)
    others = {name: sha256 for name, sha256 in digests.items() if name}
    return replace(lorry, version=version, ref=ref, sha256=digests[""], components=others, tree="")


def _not_offered(lorry: Lorry, versions: list[str]) -> SourceError:
    return SourceError(
        f"{lorry.where}: {lorry.name} {lorry.version} is not offered; there are"
        f" {', '.join(dict.fromkeys(versions))}"
    )


def _is_newer(version: str, other: str, order: Callable[..., Any]) -> bool:
    """Whether a version is newer than the other; False if one of them cannot be compared."""
    try:
        return bool(order(version) > order(other))
    except ValueError:
        return False


def _debian_version() -> Callable[..., Any]:
    from debian.debian_support import Version

    return Version
