"""Reads and validates stratum morphs, and the chunk specs in them.

Existing definitions rely on these rules:

- ``build-depends`` may be left out only if a chunk is a bootstrap, test or import chunk, or if all
  chunks list what they need of other strata.
- Bootstrap chunks are always build-only.
- A chunk's ``repo`` defaults to its name.
- ``unpetrify-ref`` is a remark and may have any value.
- ``repo`` and ``ref`` in an entry of ``build-depends`` are ignored with a warning.
- Fields for an architecture, in ``arch``, replace those of the chunk in systems for it.
- An ``alias`` does not allow two chunks of one name: dependencies and artifacts use names.
"""

from __future__ import annotations

from typing import cast

import msgspec

from fabric.definitions.chunk_morph import imported
from fabric.definitions.fields import Fields, listing
from fabric.definitions.graph import Mode, Submodule
from fabric.definitions.located_yaml import Map, Seq
from fabric.definitions.morphs import (
    COMMON,
    ChunkSpec,
    Elsewhere,
    Fieldset,
    Reference,
    StratumMorph,
    products,
    reference,
)
from fabric.definitions.system_morph import ARCHITECTURES, similar
from fabric.definitions.walk import cycles
from fabric.errors import suggest

STRATUM = COMMON | {
    "build-depends": (
        "list",
        "strata that the chunks are built on; required unless a chunk is a bootstrap, test or"
        " import chunk, or all chunks list what they need of other strata",
    ),
    "chunks": ("list, required", "the chunks"),
    "products": ("list", "split rules; the patterns match names of chunk artifacts"),
}
DEPENDENCY: Fieldset = {
    "morph": ("path, required", "the morph of the stratum"),
    "name": ("text", "a remark for people"),
    "repo": ("", "ignored, with a warning"),
    "ref": ("", "ignored, with a warning"),
}
ELSEWHERE: Fieldset = {
    "stratum": ("path, required", "the morph of another stratum"),
    "chunks": ("list of names", "chunks of it that the build needs; default: all"),
}
#: Fields that may differ between architectures.
FOR_ARCH: Fieldset = {
    "repo": ("text", "instead of the chunk's own"),
    "ref": ("text", "instead of the chunk's own"),
    "morph": ("path", "instead of the chunk's own `morph` or `build-system`"),
}
_SPEC: Fieldset = {
    "name": ("name, required", "the name of the chunk"),
    "morph": (
        "path",
        "the chunk's morph; either this or `build-system` is required, except for an import chunk",
    ),
    "build-system": ("name", "a build system of DEFAULTS, for a chunk without a morph"),
    "repo": ("text", "`ALIAS:NAME`, a git URL or an absolute path; default: the chunk's name"),
    "ref": ("text, required", "a tag, branch or commit; `HEAD`: that of the definitions"),
    "unpetrify-ref": ("anything", "a remark: the branch from which a commit was taken"),
    "build-mode": (
        "word",
        "`staging` (the default), `import` (installed as it is), `bootstrap` (with the import"
        " chunks that it depends on, or without any with the machine's tools), or `test` (with the"
        " machine's tools, in a staging area)",
    ),
    "build-only": (
        "truth value",
        "true: for other chunks of this stratum only; bootstrap chunks always are",
    ),
    "prefix": ("path", "where it is installed; default `/usr`"),
    "build-depends": (
        "list",
        "names of chunks of this stratum that the build needs, and mappings for those of other"
        " strata; with a mapping, the stratum's own `build-depends` does not apply to the chunk",
    ),
    "artifacts": ("mapping", "chunk artifact -> the stratum artifact that takes it"),
    "arch": ("mapping", "architecture -> the fields that differ in systems for it"),
    "alias": ("name", "accepted, and without effect"),
}
SPEC = _SPEC | {
    "submodules": (
        "mapping",
        "path -> `url` and nested `submodules`: where git submodules come from; version 8 only",
    ),
}
_MODES = ("staging", "import", "bootstrap", "test")


def stratum(fields: Fields, given: Map, version: int, arch: str) -> StratumMorph:
    """The stratum morph in ``given``, as systems for an architecture have it.

    Mistakes are reported to ``fields``.  Those in the fields for other architectures are, too.
    """
    name = fields.name(given, "name", "stratum")
    what = f"stratum {name}".rstrip()
    fields.known(given, what, STRATUM)
    specs = []
    for line, item in fields.items(given, "chunks", what):
        entry = fields.mapping(item, line, f"{what}: an entry of 'chunks'")
        if entry is not None:
            specs.append(_spec(fields, entry, version, arch))
    if not given.get("chunks"):
        line = given.lines.get("chunks", given.line)
        fields.report(line, f"{what} has no chunks: list at least one in 'chunks'")
    elif (
        "build-depends" not in given
        and all(spec.mode == "staging" for spec in specs)
        and not all(spec.elsewhere for spec in specs)
    ):
        fields.report(
            given.line,
            f"{what} has no 'build-depends', so nothing to build its chunks with: name the strata"
            " it needs, or write 'build-depends: []' if it needs none",
        )
    _check_names(fields, specs, what)
    return StratumMorph(
        fields.file,
        name,
        fields.description(given, what),
        given.line,
        _depends(fields, given, what),
        tuple(specs),
        products(fields, given, what),
    )


def _depends(fields: Fields, given: Map, what: str) -> tuple[Reference, ...]:
    found = []
    for line, item in fields.items(given, "build-depends", what):
        entry = fields.mapping(item, line, f"{what}: an entry of 'build-depends'")
        if entry is not None:
            fields.known(entry, f"{what}: build-depends", DEPENDENCY)
            fields.ignored(entry, f"{what}: build-depends", ("repo", "ref"))
            found.append(reference(fields, entry, f"{what}: build-depends"))
    return tuple(found)


def _check_names(fields: Fields, specs: list[ChunkSpec], what: str) -> None:
    """Report repeated names, unknown dependencies, and cycles."""
    by_name: dict[str, ChunkSpec] = {}
    for spec in specs:
        if spec.name and by_name.setdefault(spec.name, spec) is not spec:
            fields.report(
                spec.line,
                f"{what}: there is a chunk {spec.name!r} already in line"
                f" {by_name[spec.name].line}: give one of them another name",
            )
    for spec in specs:
        for wanted in spec.depends:
            if wanted not in by_name:
                hint = suggest(wanted, by_name) or (
                    "; for a chunk of another stratum, write {stratum: FILE, chunks: [NAME]}"
                )
                fields.report(
                    spec.lines["build-depends"],
                    f"chunk {spec.name}: it build-depends on {wanted!r}, which is not a chunk of"
                    f" {what}{hint}",
                )
    graph = {
        name: [one for one in spec.depends if one in by_name] for name, spec in by_name.items()
    }
    for cycle in cycles(graph):
        fields.report(
            by_name[cycle[0]].lines["build-depends"],
            f"{what}: chunks need each other in a cycle: {' -> '.join(cycle)}:"
            " remove one of these dependencies",
        )


def _spec(fields: Fields, given: Map, version: int, arch: str) -> ChunkSpec:
    name = fields.name(given, "name", "chunk")
    what = f"chunk {name}".rstrip()
    if not given.keys() <= _SPEC.keys():
        if "submodules" in given and version < 8:
            fields.report(
                given.lines["submodules"],
                f"{what}: 'submodules' came with version 8 of the format and these definitions"
                f" are version {version}: write 'version: 8' into VERSION",
            )
        fields.known(given, what, SPEC)
    if "alias" in given:
        fields.name(given, "alias", what)
    mode = _mode(fields, given, what)
    if mode == "import":
        for field in ("build-system", "build-depends"):
            if field in given:
                fields.report(given.lines[field], imported(what, field))
    if "morph" in given and "build-system" in given:
        fields.report(
            given.lines["morph"],
            f"{what} has both 'morph' and 'build-system': keep one; a chunk with a morph names its"
            " build system there",
        )
    elif mode != "import" and "morph" not in given and "build-system" not in given:
        fields.report(
            given.line,
            f"{what} does not say how it is built: name a 'build-system', or its file as 'morph'",
        )
    depends, elsewhere = _needs(fields, given, what)
    spec = ChunkSpec(
        line=given.line,
        name=name,
        repo=fields.source(given, "repo", what, name),
        ref=fields.source(given, "ref", what),
        morph=reference(fields, given, what) if "morph" in given else None,
        build_system=fields.text(given, "build-system", what) if "build-system" in given else "",
        mode=mode,
        build_only=_build_only(fields, given, what, mode),
        prefix=_prefix(fields, given, what),
        depends=depends,
        elsewhere=elsewhere,
        artifacts=_artifacts(fields, given, what) if "artifacts" in given else (),
        submodules=_submodules(fields, given, what) if "submodules" in given else (),
        unpetrify_ref=str(given.get("unpetrify-ref", ""))[:80],
        lines=given.lines,
    )
    return _for_arch(fields, given, what, arch, spec) if "arch" in given else spec


def _for_arch(fields: Fields, given: Map, what: str, arch: str, spec: ChunkSpec) -> ChunkSpec:
    """The chunk as systems for an architecture have it."""
    table = fields.mapping(given["arch"], given.lines["arch"], f"{what}: 'arch'")
    if table is None:
        return spec
    found = spec
    for one, value in table.items():
        line = table.lines[one]
        if one not in ARCHITECTURES:
            hint = similar(one) or f"; known are {listing(sorted(ARCHITECTURES))}"
            fields.report(line, f"{what}: unknown architecture {one!r}{hint}")
        inside = f"{what}: arch {one}"
        entry = fields.mapping(value, line, inside)
        if entry is None:
            continue
        fields.known(entry, inside, FOR_ARCH)
        other = msgspec.structs.replace(spec, lines={**spec.lines, **entry.lines})
        if "repo" in entry:
            other.repo = fields.source(entry, "repo", inside)
        if "ref" in entry:
            other.ref = fields.source(entry, "ref", inside)
        if "morph" in entry:
            other.morph, other.build_system = reference(fields, entry, inside), ""
        if one == arch:
            found = other
    return found


def _needs(fields: Fields, given: Map, what: str) -> tuple[tuple[str, ...], tuple[Elsewhere, ...]]:
    """The names of chunks of this stratum in ``build-depends``, and the entries for others."""
    key = "build-depends"
    listed = given.get(key)
    if not (isinstance(listed, Seq) and any(type(item) is Map for item in listed)):
        return tuple(dict.fromkeys(fields.texts(given, key, what))), ()
    names: list[str] = []
    found: dict[str, Elsewhere] = {}
    for line, item in fields.items(given, key, what):
        if not isinstance(item, Map):
            names += [item] if fields.is_text(item, line, key, what) else []
            continue
        entry = _elsewhere(fields, item, f"{what}: build-depends")
        path = entry.stratum.path
        if path == fields.file:
            fields.report(
                entry.stratum.line,
                f"{what}: {path} is its own stratum: list the names of its chunks, without"
                " 'stratum'",
            )
        elif path and found.setdefault(path, entry) is not entry:
            fields.report(
                entry.stratum.line,
                f"{what}: it build-depends on {path} in line {found[path].stratum.line} already:"
                " put all chunks of it into one list",
            )
    return tuple(dict.fromkeys(names)), tuple(found.values())


def _elsewhere(fields: Fields, given: Map, what: str) -> Elsewhere:
    fields.known(given, what, ELSEWHERE)
    stratum = reference(fields, given, what, "stratum")
    if "chunks" not in given:
        return Elsewhere(stratum, None)
    chunks: dict[str, int] = {}
    items = fields.items(given, "chunks", what)
    for line, item in items:
        if not fields.is_text(item, line, "chunks", what):
            continue
        if item in chunks:
            fields.report(
                line, f"{what}: {item!r} is listed in line {chunks[item]} already: remove it here"
            )
        chunks.setdefault(item, line)
    if isinstance(given["chunks"], list) and not items:
        fields.report(
            given.lines["chunks"],
            f"{what}: 'chunks' is empty: name the chunks that the build needs, remove the field if"
            " it needs all of them, or the entry if it needs none",
        )
    return Elsewhere(stratum, tuple(chunks.items()))


def _mode(fields: Fields, given: Map, what: str) -> Mode:
    mode = fields.text(given, "build-mode", what, "staging")
    if mode in _MODES:
        return cast(Mode, mode)
    hint = suggest(mode, _MODES) or f"; known are {listing(_MODES)}"
    fields.report(given.lines["build-mode"], f"{what}: unknown build-mode {mode!r}{hint}")
    return "staging"


def _build_only(fields: Fields, given: Map, what: str, mode: Mode) -> bool:
    value = fields.truth(given, "build-only", what, default=mode == "bootstrap")
    if mode == "bootstrap" and not value:
        fields.report(
            given.lines["build-only"],
            f"{what}: bootstrap chunks are always build-only: remove 'build-only: false'",
        )
    if "build-only" in given and value and "artifacts" in given:
        fields.report(
            given.lines["artifacts"],
            f"{what} is build-only, so no stratum artifact takes its artifacts: remove 'artifacts'"
            " or 'build-only'",
        )
    return value


def _prefix(fields: Fields, given: Map, what: str) -> str:
    prefix = fields.text(given, "prefix", what, "/usr")
    if not prefix.startswith("/") or ":" in prefix or ".." in prefix.split("/"):
        fields.report(
            given.lines["prefix"],
            f"{what}: the prefix {prefix!r} must be an absolute path like '/usr', without ':'"
            " and '..'",
        )
    return prefix


def _artifacts(fields: Fields, given: Map, what: str) -> tuple[tuple[str, str, int], ...]:
    entries = fields.mapping(given["artifacts"], given.lines["artifacts"], f"{what}: 'artifacts'")
    if entries is None:
        return ()
    return tuple(
        (artifact, fields.name(entries, artifact, f"{what}: artifacts"), entries.lines[artifact])
        for artifact in entries
    )


def _submodules(fields: Fields, given: Map, what: str) -> tuple[Submodule, ...]:
    table = fields.mapping(given["submodules"], given.lines["submodules"], f"{what}: 'submodules'")
    made = []
    for path, value in (table or {}).items():
        inside = f"{what}: submodule {path}"
        if table and any(part in ("", ".", "..") for part in path.split("/")):
            fields.report(table.lines[path], f"{inside}: not a path inside the source")
        entry = fields.mapping(value, table.lines[path] if table else 0, inside)
        if entry is not None:
            fields.known(entry, inside, ("url", "submodules"))
            below = _submodules(fields, entry, inside) if "submodules" in entry else ()
            made.append(Submodule(path, fields.source(entry, "url", inside), below))
    return tuple(made)
