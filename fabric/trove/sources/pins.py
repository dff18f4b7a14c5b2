"""Writes the pins of lorries into their files, and describes what changed.

A lorry's file is edited, and its other text stays; a lock file is written anew.
"""

from __future__ import annotations

from pathlib import Path

from fabric.errors import SourceError
from fabric.host.files import write_whole
from fabric.trove.sources.lock_files import read_plain
from fabric.trove.sources.lorries import Lorries, Lorry
from fabric.trove.sources.lorry_edits import Field, edited


def record(lorry: Lorry, tree: str) -> list[str]:
    """Record the tree that an import of the lorry made.  Return the changes, a line each."""
    write(lorry, lorry.with_tree(tree))
    return describe(lorry, lorry.with_tree(tree))


def describe(before: Lorry, after: Lorry) -> list[str]:
    """The changes between two states of a lorry, a line each."""
    lines = []
    if before.version != after.version:
        lines.append(f"version {before.version or '(none)'} -> {after.version}")
    old, new = versions_of(before), versions_of(after)
    for package in sorted(old.keys() | new.keys()):
        if old.get(package) != new.get(package):
            lines.append(f"{package} {old.get(package, '(new)')} -> {new.get(package, '(gone)')}")
    for field in ("sha256", *(f"sha256 of {name}" for name in after.components), "tree"):
        was, now = _pin(before, field), _pin(after, field)
        if was != now:
            lines.append(f"{field} {was[:12] or '(none)'} -> {now[:12]}")
    if before.ref and before.ref != after.ref:
        lines.append(f"strata that name ref {before.ref} must now name {after.ref}")
    return lines


def versions_of(lorry: Lorry) -> dict[str, str]:
    return {one.name: one.version for one in lorry.lock.packages}


def _pin(lorry: Lorry, field: str) -> str:
    if field == "tree":
        return lorry.recorded_tree
    component = field.removeprefix("sha256 of ")
    return (lorry.sha256 if component == "sha256" else lorry.components.get(component)) or ""


def write(before: Lorry, after: Lorry) -> None:
    """Write the pins into the lorry's file or its lock.  SourceError if that fails."""
    if after.is_set:
        if before.lock != after.lock:
            _replace(after.lock_file, after.lock.text(after.name))
        return
    changes: dict[Field, str] = {
        field: new for field, new in _fields(after).items() if _fields(before).get(field) != new
    }
    if not changes:
        return
    text = (read_plain(before.file) or b"").decode()
    try:
        _replace(before.file, edited(text, before.name, changes))
        if _fields(Lorries(before.file.parent).named(before.name)) == _fields(after):
            return
    except ValueError:
        pass
    _replace(before.file, text)
    wanted = ", ".join(f"{' '.join(field)} {new}" for field, new in changes.items())
    raise SourceError(f"{before.where}: {before.name} could not be rewritten; change it: {wanted}")


def _fields(lorry: Lorry) -> dict[Field, str]:
    """The fields that an update writes."""
    fields: dict[Field, str] = {
        ("version",): lorry.version,
        ("sha256",): lorry.sha256 or "",
        ("tree",): lorry.tree,
    }
    return fields | {("components", name): sha256 for name, sha256 in lorry.components.items()}


def _replace(target: Path, text: str) -> None:
    try:
        write_whole(target, text.encode(), mode=0o644)
    except OSError as error:
        raise SourceError(f"{target}: the pins cannot be written: {error.strerror}") from error
