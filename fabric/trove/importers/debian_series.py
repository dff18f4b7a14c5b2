"""Reads the patches of a Debian source package: ``debian/patches/series`` of "3.0 (quilt)"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fabric import bounds
from fabric.errors import SourceError, first_of, in_line, suggest
from fabric.trove.importers import archive
from fabric.trove.importers.commit import Member
from fabric.trove.importers.download import Downloads
from fabric.trove.importers.patching import Change
from fabric.trove.sources.lorries import Lorry

_FOLDER = "debian/patches/"
#: Patches that a message names.
SHOWN = 10


def changes(lorry: Lorry, downloads: Downloads) -> list[Change]:
    """The patches that Debian applies, in its order, of a downloaded archive: all, or those chosen.

    Their options are ignored, as by dpkg: each is applied with ``-p1``.  SourceError if the series
    is wrong, or has none that was chosen.
    """
    assert lorry.debian_sha256 is not None
    package = f"{lorry.package} {lorry.version}"
    where = f"{lorry.where.rpartition(':')[0]}:{lorry.lines['debian-patches']}: {lorry.name}"
    files: dict[str, bytes] = {}
    size = 0
    for member in archive.read(downloads.path(lorry.debian_sha256), package).members:
        if not member.path.startswith(_FOLDER):
            continue
        size += member.size
        if member.size > bounds.PATCH or size > bounds.LORRIES_SIZE:
            raise SourceError(
                f"{where}: {member.path} of {package}: a patch has more than {bounds.PATCH:,}"
                f" bytes, or all have more than {bounds.LORRIES_SIZE:,}"
            )
        files[member.path] = _content(member, files)
    series = files.get(f"{_FOLDER}debian.series", files.get(f"{_FOLDER}series", b""))
    names = [name for line in series.decode(errors="replace").splitlines() for name in _name(line)]
    if len(names) > bounds.PATCHES:
        raise SourceError(f"{where}: {package} has more than {bounds.PATCHES:,} patches, the limit")
    if not isinstance(lorry.debian_patches, bool):
        names = _chosen(lorry.debian_patches, names, f"{where}: {package}")
    found = []
    for name in names:
        if f"{_FOLDER}{name}" not in files:
            raise SourceError(f"{where}: {package} has no {_FOLDER}{name}, which its series names")
        found.append(
            Change(
                prefix="",
                where=where,
                name=f"{_FOLDER}{name} of {package}",
                content=files[f"{_FOLDER}{name}"],
                advice="List only the patches that you need as `debian-patches`, or as `patches`.",
            )
        )
    return found


def _chosen(patterns: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """The names that fit one of the patterns, in their order."""
    chosen = set()
    for pattern in patterns:
        wanted = archive.starred(pattern)
        fitting = {name for name in names if wanted.fullmatch(name)}
        if not fitting:
            there = in_line(first_of(names, SHOWN))
            hint = suggest(pattern, names) or f"; its series names {there or 'none'}"
            raise SourceError(f"{what} has no patch {pattern}{hint}")
        chosen |= fitting
    return [name for name in names if name in chosen]


def _content(member: Member, files: dict[str, bytes]) -> bytes:
    """The content of a file; that of a hard link is known already, a symbolic link has none."""
    if member.content is None:
        return files.get(member.same_as, b"")
    pieces, left = [], member.size
    while left:
        pieces.append(member.content.read(left))
        left -= len(pieces[-1])
    return b"".join(pieces) if member.mode != "120000" else b""


def _name(line: str) -> list[str]:
    """The file that a line of a series names, if it names one."""
    return re.sub(r"(^|\s)#.*", "", line).split()[:1]
