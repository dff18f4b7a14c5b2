"""Small definitions for tests, and comparison with the graphs of Baserock's tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fabric.definitions.graph import Graph, Step
from fabric.definitions.load import Read, load
from fabric.errors import DefinitionsError

SHA = "f" * 40

DEFAULTS = """\
build-systems:
  manual: {}
  autotools:
    configure-commands: [./configure]
    build-commands: [make]
    install-commands: [make install]
    strip-commands: [strip]
split-rules:
  chunk:
  - {artifact: -bins, include: ['(usr/)?s?bin/.*']}
  - {artifact: -devel, include: ['(usr/)?include/.*']}
  - {artifact: -misc, include: ['.*']}
  stratum:
  - {artifact: -devel, include: ['.*-devel']}
  - {artifact: -runtime, include: ['.*']}
"""


def spec(name: str, more: str = "build-system: autotools") -> str:
    """A chunk spec of a stratum; ``more`` are further lines."""
    lines = [f"name: {name}", f"repo: upstream:{name}", f"ref: {SHA}", *more.splitlines()]
    return "\n".join([f"- {lines[0]}", *(f"  {line}" for line in lines[1:])])


def stratum(name: str, *specs: str, depends: str = "", more: str = "") -> str:
    """A stratum morph; ``depends`` are names of strata in strata/."""
    needs = "".join(f"\n- morph: strata/{one}.morph" for one in depends.split()) or " []"
    chunks = "\n".join(specs)
    return f"name: {name}\nkind: stratum\nbuild-depends:{needs}\n{more}chunks:\n{chunks}\n"


def system(*strata: str, name: str = "s", arch: str = "x86_64") -> str:
    """A system morph; a stratum is a name, or the fields of an entry if it has a colon."""
    entries = [
        f"{{{one}}}" if ":" in one else f"{{name: {one}, morph: strata/{one}.morph}}"
        for one in strata
    ]
    listed = "".join(f"\n- {entry}" for entry in entries)
    return f"name: {name}\nkind: system\narch: {arch}\nstrata:{listed}\n"


def small(**strata: str) -> dict[str, str]:
    """Definitions with a system of these strata, given as the texts of their files."""
    files = {f"strata/{name}.morph": text for name, text in strata.items()}
    return {
        "VERSION": "version: 8\n",
        "DEFAULTS": DEFAULTS,
        "systems/s.morph": system(*strata),
        **files,
    }


def reader(files: Mapping[str, str | bytes]) -> Read:
    """Reads from a mapping instead of a disk."""

    def read(path: str) -> bytes | None:
        content = files.get(path)
        return content.encode() if isinstance(content, str) else content

    return read


def loaded(files: Mapping[str, str | bytes], path: str = "systems/s.morph") -> Graph:
    return load(reader(files), path)


def mistakes(files: Mapping[str, str | bytes], path: str = "systems/s.morph") -> list[str]:
    """The mistakes in definitions, as the user sees them; fails if there are none."""
    with pytest.raises(DefinitionsError) as caught:
        loaded(files, path)
    return [str(problem) for problem in caught.value.problems]


def named(graph: Graph, name: str, kind: str = "chunk") -> Step:
    """The only step of that kind and name."""
    (step,) = [step for step in graph.steps if step.kind == kind and step.name == name]
    return step


def indices(ranges: str) -> list[int]:
    """``0-2,5`` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def old_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of Baserock's tool in the format of `new_view`.

    The ``.morph`` is removed that it adds to names of chunks with a build system.
    """
    chunks = [chunk_name(one.get("morph"), one) for one in row["chunks"]]
    strata = [one["morph"] for one in row["strata"]]
    return {
        "name": row["name"],
        "arch": row["arch"],
        "chunks": {
            name: {
                "mode": one["mode"],
                "prefix": one["prefix"],
                "build_system": one.get("build_system", ""),
                "source_name": one.get("source_name", one["name"]).removesuffix(".morph"),
                "strata": [row["strata"][number]["name"] for number in one["strata"]],
                "depends": {chunks[number] for number in one["deps"]},
                "strata_depends": {strata[number] for number in one["dep_strata"]},
                "staged": {chunks[number] for number in indices(one["staged"])},
                "path_prefixes": one["dep_prefixes"],
            }
            for name, one in zip(chunks, row["chunks"], strict=True)
        },
        "strata": {
            one["morph"]: {
                "name": one["name"],
                "chunks": {chunks[number] for number in indices(one["chunks"])},
                "depends": {strata[number] for number in one["deps"]},
                "in_system": one["in_system"],
                "produces": sorted(one["produces"]),
            }
            for one in row["strata"]
        },
        "image": {chunks[number] for number in indices(row["image"])},
        "image_strata_artifacts": sorted(row["image_strata_artifacts"]),
        "image_missing_artifacts": {
            name: sorted(artifact.replace(f"{name}.morph-", f"{name}-") for artifact in missing)
            for name, missing in row.get("image_missing_artifacts", {}).items()
        },
    }


def new_view(graph: Graph) -> dict[str, Any]:
    """A graph in a format that can be compared with that of Baserock's tool."""
    names = {
        step.id: chunk_name(step.morph, {"name": step.name, "repo": step.repo, "ref": step.ref})
        for step in graph.steps
        if step.kind == "chunk"
    }

    def chunks(ids: tuple[str, ...]) -> set[tuple[str, ...]]:
        return {names[one] for one in ids if one in names}

    def strata(ids: tuple[str, ...]) -> set[str]:
        return {graph[one].morph for one in ids if graph[one].kind == "stratum"}

    image: dict[str, set[str]] = {}
    for node, artifact in graph.root.contents:
        for chunk, name in graph[node].lists[artifact]:
            image.setdefault(chunk, set()).add(name)
    assert image.keys() == {
        step.id for step in graph.steps if step.kind == "chunk" and step.in_system
    }
    return {
        "name": graph.system,
        "arch": graph.arch,
        "chunks": {
            names[step.id]: {
                "mode": step.mode,
                "prefix": step.prefix,
                "build_system": step.build_system,
                "source_name": step.source_name,
                "strata": list(step.strata),
                "depends": chunks(step.depends),
                "strata_depends": strata(step.depends),
                "staged": chunks(step.staged),
                "path_prefixes": list(step.path_prefixes),
            }
            for step in graph.steps
            if step.kind == "chunk"
        },
        "strata": {
            step.morph: {
                "name": step.name,
                "chunks": chunks(step.depends),
                "depends": strata(step.depends),
                "in_system": step.in_system,
                "produces": sorted(step.artifacts),
            }
            for step in graph.steps
            if step.kind == "stratum"
        },
        "image": {names[one] for one in image},
        "image_strata_artifacts": sorted(artifact for _, artifact in graph.root.contents),
        "image_missing_artifacts": {
            graph[one].name: sorted(missing)
            for one, has in image.items()
            if (missing := set(graph[one].artifacts) - has)
        },
    }


def chunk_name(morph: str | None, chunk: Mapping[str, str]) -> tuple[str, ...]:
    """The identity of a chunk in a system."""
    return chunk["name"], chunk["repo"], chunk["ref"], morph or ""


def check_order(graph: Graph) -> None:
    """Check that steps, and staged chunks, come after their dependencies."""
    place = {step.id: number for number, step in enumerate(graph.steps)}
    for step in graph.steps:
        assert all(place[one] < place[step.id] for one in step.depends), step.id
        positions = [place[one] for one in step.staged]
        assert positions == sorted(positions), step.id
    assert graph.root.kind == "system"
