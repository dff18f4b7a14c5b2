"""Reads the files of built steps, and formats their differences."""

from __future__ import annotations

from fabric.building.compare import File, FileChange, Tree
from fabric.client.render import size
from fabric.errors import DamagedError, MachineFault
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store


def tree_of(store: Store, manifest: Manifest) -> Tree:
    """The files of a chunk or system.  StoreError if they cannot be read."""
    tree = Tree()
    for artifact in manifest.artifacts:
        if artifact.blob is not None:
            try:
                with store.open(artifact.blob, manifest.key) as file:
                    tree.add(artifact.name, file)
            except (DamagedError, MachineFault) as error:
                raise DamagedError(f"{artifact.name}: {error}", (manifest.key,)) from None
    return tree


def file_line(change: FileChange) -> str:
    """One line about a path that differs."""
    old, new = change.old, change.new
    if old is None or new is None:
        only = new or old
        assert only is not None
        shown = size(only.size) if only.type == "file" else _shown(only)
        return f"{'-' if new is None else '+'} {change.path}: {shown}"
    return f"~ {change.path}: {', '.join(_how(what, old, new) for what in change.what)}"


def _how(what: str, old: File, new: File) -> str:
    if what == "content":
        return f"content, {size(old.size)} -> {size(new.size)}"
    if what == "type":
        return f"{_shown(old)} -> {_shown(new)}"
    return f"{what} {getattr(old, what)} -> {getattr(new, what)}"


def _shown(file: File) -> str:
    to = " to" if file.type == "symlink" else ""
    return f"{file.type}{to} {file.target}" if file.target else file.type
