"""Writes the pins of lorries into their files, and describes what changed.

A lorry's file is edited, and its other text stays; a lock file is written anew.
"""

from __future__ import annotations

from pathlib import Path

from fabric.errors import SourceError
from fabric.host.files import write_whole
from fabric.trove.sources.lock_files import read_plain
from fabric.trove.sources.lorries import Lorries, Lorry
from fabric.trove.sources.lorry_edits import Field, Value, edited


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
    old_fields = _fields(before)
    for field, now in _fields(after).items():
        was = old_fields.get(field, "")
        if was == now or field == ("version",):
            continue
        if isinstance(now, tuple):
            lines.append(f"{field[0]} {', '.join(was) or '(none)'} -> {', '.join(now) or '(none)'}")
            continue
        shown = f"sha256 of {field[1]}" if field[0] == "components" else field[0]
        lines.append(f"{shown} {was[:12] or '(none)'} -> {now[:12]}")
    if before.ref and before.ref != after.ref:
        lines.append(f"strata that name ref {before.ref} must now name {after.ref}")
    return lines


def versions_of(lorry: Lorry) -> dict[str, str]:
    return {one.name: one.version for one in lorry.lock.packages}


def write(before: Lorry, after: Lorry) -> None:
    """Write the pins into the lorry's file or its lock.  SourceError if that fails."""
    if after.is_set:
        if before.lock != after.lock:
            _replace(after.lock_file, after.lock.text(after.name))
        return
    changes: dict[Field, Value] = {
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
    wanted = ", ".join(
        f"{' '.join(field)} {new if isinstance(new, str) else ' '.join(new)}"
        for field, new in changes.items()
    )
    raise SourceError(f"{before.where}: {before.name} could not be rewritten; change it: {wanted}")


def _fields(lorry: Lorry) -> dict[Field, Value]:
    """The fields that are written, in the order in which changes are listed."""
    fields: dict[Field, Value] = {("version",): lorry.version, ("sha256",): lorry.sha256 or ""}
    if lorry.debian_patches:
        fields["debian-sha256",] = lorry.debian_sha256 or ""
    fields |= {("components", name): sha256 for name, sha256 in lorry.components.items()}
    for path, part in lorry.parts.items():
        if not part.lorry:
            fields["components", path, "sha256"] = part.sha256 or ""
    fields["patches",] = tuple(patch.path for patch in lorry.patches)
    return fields | {("tree",): lorry.recorded_tree}


def _replace(target: Path, text: str) -> None:
    try:
        write_whole(target, text.encode(), mode=0o644)
    except OSError as error:
        raise SourceError(f"{target}: the pins cannot be written: {error.strerror}") from error
