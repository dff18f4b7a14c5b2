"""Adds a lorry to the definitions, and says what a stratum needs to build its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fabric.commands.shared.plans import open_project
from fabric.definitions.defaults import defaults
from fabric.definitions.fields import Findings
from fabric.definitions.yaml_scalar import scalar
from fabric.errors import DefinitionsError, SourceError
from fabric.trove.sources.lorry_entries import added, composed, file_of
from fabric.trove.sources.lorry_fields import last_part

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.jobs import Source
    from fabric.trove.sources.git import Repository

#: A file at the top of a source -> the build system that it is for; the first that exists counts.
MARKS = {
    "configure": "autotools",
    "configure.ac": "autotools",
    "meson.build": "meson",
    "CMakeLists.txt": "cmake",
    "Cargo.toml": "cargo",
    "go.mod": "go",
    "pyproject.toml": "python-pep517",
    "setup.py": "python3-distutils",
    "Makefile.PL": "cpan",
    "Build.PL": "module-build",
    "Makefile": "make",
}


def add_lorry(
    project: Project, name: str, kind: str, assignments: Sequence[str], file: str
) -> tuple[list[str], str]:
    """Add a lorry, pin what is offered, and import it.

    ``assignments``: fields, as FIELD=VALUE.  Return the changes, a line each, and the entry of a
    stratum's chunks.  SourceError, and nothing is written, if it cannot be imported.
    """
    known = project.sources.lorries.get(name)
    if known is not None:
        raise SourceError(f"{known.where}: there is a lorry {name} already")
    fields = {}
    for one in assignments:
        field, given, value = one.partition("=")
        if not given:
            raise SourceError(f"{one!r}: a field is written as FIELD=VALUE, such as version=1.0")
        fields[field] = value
    entry = composed(name, kind, fields)
    path = file_of(project.root / "sources", file or last_part(name))
    try:
        with added(path, entry):
            project = open_project(project.settings)  # reads the entry
            changes = project.sources.update_lorry(name)
            source, more = project.sources.run_lorry(name)
            project.sources.publish([source])
    except (SourceError, DefinitionsError) as error:
        raise SourceError(f"{error}\nSo the lorry is not added.") from error
    return [f"added to sources/{path.name}", *changes, *more], _chunk(project, name, source)


def _chunk(project: Project, name: str, source: Source) -> str:
    """The entry of a chunk that is built from a source, in a stratum."""
    lorry = project.sources.lorries.named(name)
    chunk = last_part(name)
    lines = [f"- name: {scalar(chunk)}"]
    if lorry.is_set:
        lines.append("  build-mode: import")
    elif system := _build_system(project, source):
        lines.append(f"  build-system: {system}")
    else:
        lines.append(f"  morph: strata/STRATUM/{chunk}.morph")
    lines += [f"  repo: {lorry.repo}", f"  ref: {scalar(lorry.ref or source.commit)}"]
    if not lorry.ref:
        lines.append(f"  unpetrify-ref: {scalar(source.ref.removeprefix('refs/heads/'))}")
    return "\n".join(lines)


def _build_system(project: Project, source: Source) -> str:
    """The build system for a source, by the files at its top; "" if DEFAULTS has none."""
    there = names_at_top(project.sources.repository(source.repo), source.commit)
    found = defaults(project.read("DEFAULTS"), Findings())
    systems = found.build_systems if found else {}
    return next((one for mark, one in MARKS.items() if mark in there and one in systems), "")


def names_at_top(repository: Repository, commit: str) -> frozenset[str]:
    """The names of files and folders at the top of a commit."""
    listing = repository.run("ls-tree", "-z", "--name-only", commit) or b""
    return frozenset(listing.decode(errors="replace").split("\0"))
