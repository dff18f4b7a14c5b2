"""Saves the work in an edited chunk's work tree as patches of the chunk's lorry."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from fabric.client.edits import Edit, Edits
from fabric.client.project import Project
from fabric.errors import FabricError, SourceError
from fabric.host.files import write_whole
from fabric.trove.sources import saving
from fabric.trove.sources.lorries import Lorry


def save(project: Project, edits: Edits, edit: Edit) -> list[str]:
    """Write the patches, and name them in the lorry; returns their paths in the definitions.

    Nothing changes unless the lorry, with them, imports exactly the files of the work tree.
    FabricError or SourceError if that cannot be.
    """
    lorry = _lorry_of(project, edit)
    taken = edits.snapshots([edit.chunk])[edit.chunk]
    number = len(lorry.patches) + 1
    before, repository = edit.source.tree, edits.repository(edit)
    made = saving.patches(Path(edit.folder), repository, before, taken.tree, number)
    if not made:
        return []
    below = Path("patches", lorry.name.replace(":", "_"))
    paths = [str(below / name) for name in made]
    top = lorry.file.parent
    files = {top / path: content for path, content in zip(paths, made.values(), strict=True)}
    if there := [file for file in files if file.exists()]:
        raise FabricError(f"{there[0]}: exists already; move it away, and save again")
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content, mode=0o644)
        names = [*(patch.path for patch in lorry.patches), *paths]
        project.sources.save_patches(lorry.name, names, taken.tree)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    source = project.sources.resolve(edit.source.repo, edit.source.ref)
    edits.add(replace(edit, source=source))
    return [str((top / path).relative_to(project.root)) for path in paths]


def _lorry_of(project: Project, edit: Edit) -> Lorry:
    """The lorry that can have patches of a chunk.  SourceError if there is none."""
    lorry = project.sources.lorries.get(edit.source.repo)
    if lorry is None or not lorry.brings(edit.source.ref) or lorry.is_set:
        raise SourceError(
            f"{edit.chunk}: its source {edit.source.repo} {edit.source.ref} is no archive that a"
            " lorry imports, so it can have no patches: commit and push the work in"
            f" {edit.folder}, and name the commit as `ref` of the chunk"
        )
    if edit.source.submodules:
        raise SourceError(f"{edit.chunk}: a source with submodules can have no patches")
    return lorry
