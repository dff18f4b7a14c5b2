"""Renewing what lorries pin: ask the archives, then rewrite the lorry's files in place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fabric.errors import SourceError
from fabric.trove.importers import debian, pypi, wheels
from fabric.trove.imports import Imports
from fabric.trove.lorries import Lorries, Lorry

_HEAD = """\
# The packages of the lorry {0}: name, version, architecture, SHA-256, size in bytes.
# Made by `fabric-initiator lorry update {0}`.
"""


def renew(lorry: Lorry, imports: Imports, *, keep_ref: bool = False) -> Lorry:
    """Pin what is offered now: the archive's newest, or what stands at a tarball's URL.

    With ``keep_ref`` strata need no change even if the version does: the lorry then says `ref`.
    Return the lorry as it is afterwards.  SourceError if nothing is offered.
    """
    match lorry.type:
        case "git":
            return lorry  # nothing is pinned: strata name commits, tags or branches
        case "debian-packages" | "pypi-wheels":
            if lorry.type == "debian-packages":
                locked = debian.resolve_packages(lorry, imports.apt(lorry))
            else:
                locked = wheels.resolve_wheels(
                    lorry, imports.downloads, imports.progress, imports.stop
                )
            text = _HEAD.format(lorry.name) + "".join(f"{one}\n" for one in locked)
            _replace(lorry, lorry.lock_file, text)
            return lorry
        case "tarball":
            _, sha256 = imports.downloads.any_of(lorry.url)
            changes = {"sha256": sha256}
        case "pypi":
            sdist = pypi.newest(pypi.offered_sdists(lorry.package))
            changes = {"version": sdist.version, "sha256": sdist.sha256}
        case _:
            changes = _newest_source(lorry, imports)
    return _rewrite(lorry, changes, keep_ref)


def describe(before: Lorry, after: Lorry) -> list[str]:
    """What changed between two states of a lorry, a line each; none if nothing did."""
    lines = []
    if before.version != after.version:
        lines.append(f"version {before.version} -> {after.version}")
    for component in ("", *after.components):
        old = before.components.get(component, "") if component else before.sha256
        new = after.components[component] if component else after.sha256
        if old != new:
            label = f"sha256 of {component}" if component else "sha256"
            lines.append(f"{label} {old[:12]} -> {new[:12]}")
    if before.ref != after.ref:
        lines.append(f"strata that name ref {before.ref} must now name {after.ref}")
    return lines


def describe_packages(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The same for two states (package -> version) of a lock file."""
    lines = []
    for package in sorted(before.keys() | after.keys()):
        old, new = before.get(package), after.get(package)
        if old != new:
            lines.append(f"{package} {old or '(new)'} -> {new or '(gone)'}")
    return lines


def update(lorries: Lorries, name: str, imports: Imports) -> list[str]:
    """Renew the pins of one lorry and write them.  Return what changed, a line each."""
    lorry = lorries.named(name)
    locked = {one.name: one.version for one in lorry.locked()} if not lorry.sha256 else {}
    renewed = renew(lorry, imports)
    now = {one.name: one.version for one in renewed.locked()} if not lorry.sha256 else {}
    return describe(lorry, renewed) + describe_packages(locked, now)


def _newest_source(lorry: Lorry, imports: Imports) -> dict[str, str]:
    apt = imports.apt(lorry)
    with apt.opened():
        apt.update()
        offered = debian.offered_origs(lorry.package, apt)
    if not offered:
        raise SourceError(
            f"{lorry.where}: the archives of this machine have no source package {lorry.package}"
        )
    files = offered[0].files
    missing = {"", *lorry.components} - files.keys()
    if missing:
        raise SourceError(
            f"{lorry.where}: {lorry.package} {offered[0].version} no longer has the orig tarball"
            f" {', '.join(sorted(missing))}: change the lorry by hand"
        )
    changes = {component: files[component][1] for component in lorry.components}
    return {"version": offered[0].upstream, "sha256": files[""][1], **changes}


def _rewrite(lorry: Lorry, changes: Mapping[str, str], keep_ref: bool) -> Lorry:
    """Change fields of a lorry in its file, leaving everything else as its author wrote it."""
    text = lorry.file.read_text()
    before = {"version": lorry.version, "sha256": lorry.sha256, **lorry.components}
    lines = text.splitlines(keepends=True)
    start = int(lorry.where.rpartition(":")[2]) - 1
    for key, new in changes.items():
        old = before[key]
        if old == new:
            continue
        pattern = re.compile(rf"\b({re.escape(key)}:\s*[\"']?){re.escape(old)}(?![\w.+~-])")
        for number in range(start, len(lines)):
            changed, count = pattern.subn(rf"\g<1>{new}", lines[number], count=1)
            if count:
                lines[number] = changed
                break
    if keep_ref and lorry.version != changes.get("version", lorry.version):
        _state_ref(lorry, lines, start)
    _replace(lorry, lorry.file, "".join(lines))
    renewed = Lorries(lorry.file.parent).named(lorry.name)
    found = {"version": renewed.version, "sha256": renewed.sha256, **renewed.components}
    if any(found[key] != new for key, new in changes.items()):
        lorry.file.write_text(text)
        wanted = ", ".join(f"{key} {new}" for key, new in changes.items())
        raise SourceError(
            f"{lorry.where}: {lorry.name} could not be rewritten; change it: {wanted}"
        )
    return renewed


def _state_ref(lorry: Lorry, lines: list[str], start: int) -> None:
    """Have the lorry say the ref that so far was just its version."""
    if "ref" in lorry.lines:
        return
    number = lorry.lines["version"] - 1
    line = lines[number]
    if number == start:  # {all: on, one: line}
        lines[number] = re.sub(r"\bversion:", f'ref: "{lorry.ref}", version:', line, count=1)
    else:
        indent = line[: len(line) - len(line.lstrip())]
        lines.insert(number, f'{indent}ref: "{lorry.ref}"\n')


def _replace(lorry: Lorry, target: Path, text: str) -> None:
    fresh = target.with_name(target.name + ".new")
    try:
        fresh.write_text(text)
        fresh.replace(target)
    except OSError as error:
        raise SourceError(
            f"{target}: the new pins of {lorry.name} cannot be written: {error.strerror}"
        ) from error
