"""Defines the typed contents of morphs, and the readers of fields that several kinds share.

Baserock's tool did not check fields of chunk specs and list entries, types of names and commands,
build modes, prefixes and regular expressions.  These readers do: such a mistake ended in a crash,
or in another build than intended.
"""

from __future__ import annotations

import msgspec

from fabric import bounds
from fabric.definitions.fields import Fields, bad_name, is_name
from fabric.definitions.graph import Device, Mode, Rule, Submodule
from fabric.definitions.located_yaml import Map

#: Fields of a mapping: name -> (value, meaning), as docs/reference/morphs.md shows them.
Fieldset = dict[str, tuple[str, str]]
#: Top-level fields of every morph.
COMMON: Fieldset = {
    "name": ("name, required", "the name of what the morph describes"),
    "kind": ("word, required", "`chunk`, `stratum`, `system` or `cluster`"),
    "description": ("text", "a remark for people"),
}
PRODUCT: Fieldset = {
    "artifact": ("name, required", "the artifact; in DEFAULTS only the end of its name"),
    "include": (
        "list of patterns, required",
        "regular expressions of RE2 that match from the start of a path, not up to its end",
    ),
}


class Reference(msgspec.Struct):
    """The path of a morph that another one names, and the line there."""

    path: str
    line: int


class StrataEntry(msgspec.Struct):
    """One stratum of a system.  ``artifacts`` is None if the system takes all."""

    name: str
    morph: Reference
    artifacts: tuple[tuple[str, int], ...] | None  # (name, line)
    name_line: int


class SystemMorph(msgspec.Struct):
    file: str
    line: int
    name: str
    arch: str
    description: str
    strata: tuple[StrataEntry, ...]


class Elsewhere(msgspec.Struct):
    """Chunks of another stratum that a chunk needs.  ``chunks`` is None if it needs all."""

    stratum: Reference
    chunks: tuple[tuple[str, int], ...] | None  # (name, line)


class ChunkSpec(msgspec.Struct):
    """A chunk as its stratum describes it."""

    line: int
    name: str
    repo: str
    ref: str
    morph: Reference | None  # None: the spec names a build system
    build_system: str
    mode: Mode
    build_only: bool
    prefix: str
    depends: tuple[str, ...]  # names of other chunks of the stratum
    elsewhere: tuple[Elsewhere, ...]  # if any, they replace the stratum's `build-depends`
    artifacts: tuple[tuple[str, str, int], ...]  # (chunk artifact, stratum artifact, line)
    submodules: tuple[Submodule, ...]
    unpetrify_ref: str
    lines: dict[str, int]


class StratumMorph(msgspec.Struct):
    file: str
    name: str
    description: str
    line: int
    depends: tuple[Reference, ...]
    chunks: tuple[ChunkSpec, ...]
    products: tuple[Rule, ...]


class ChunkMorph(msgspec.Struct):
    file: str
    name: str
    description: str
    build_system: str
    build_system_line: int
    commands: dict[str, tuple[str, ...]]  # its own command lists
    built: dict[str, int]  # its fields about building, and their lines
    products: tuple[Rule, ...]
    max_jobs: int | None
    not_reproducible: str  # why; "" if it is to be
    hardening: bool
    devices: tuple[Device, ...]
    #: {artifact: {prefix: commands}}, and the line of each artifact
    integration: dict[str, dict[str, tuple[str, ...]]]
    integration_lines: dict[str, int]


def morph_path(path: str) -> str:
    """A morph's path, with the suffix that may be left out of a path without a directory."""
    return path if "/" in path or path.endswith(".morph") else f"{path}.morph"


def reference(fields: Fields, given: Map, what: str, key: str = "morph") -> Reference:
    """The path of a morph in field ``key``."""
    path = fields.text(given, key, what)
    line = given.lines.get(key, given.line)
    parts = path.split("/")
    if path and any(part in ("", ".", "..") for part in parts):
        proper = "/".join(part for part in parts if part not in ("", ".", ".."))
        fields.report(
            line,
            f"{what}: {path!r} is not a path from the root of the definitions;"
            f" write it as {proper!r}",
        )
        path = proper
    return Reference(morph_path(path) if path else "", line)


def products(fields: Fields, given: Map, what: str) -> tuple[Rule, ...]:
    """The split rules in field ``products``."""
    rules = []
    for line, item in fields.items(given, "products", what):
        entry = fields.mapping(item, line, f"{what}: an entry of 'products'")
        if entry is not None:
            rules.append(split_rule(fields, entry, f"{what}: product"))
    return few(fields, rules, given, "products", what)


def few(fields: Fields, rules: list[Rule], given: Map, key: str, what: str) -> tuple[Rule, ...]:
    """``rules``, from field ``key``; none, and a report, if they have too many patterns."""
    if sum(len(rule.include) for rule in rules) <= bounds.PATTERNS:
        return tuple(rules)
    line = given.lines[key]
    fields.report(line, f"{what}: {key!r} has more than {bounds.PATTERNS:,} patterns")
    return ()


def split_rule(fields: Fields, entry: Map, what: str, *, suffix: bool = False) -> Rule:
    """The rule in a mapping ``{artifact, include}``; with ``suffix``, artifact ends a name."""
    artifact = fields.text(entry, "artifact", what, "" if suffix else None)
    if artifact and not is_name(f"x{artifact}" if suffix else artifact):
        fields.report(entry.lines["artifact"], f"{what}: {bad_name(artifact)}")
    what = f"{what} {artifact}".rstrip()
    if "include" not in entry:
        fields.report(entry.line, f"{what}: the field 'include' is missing")
    fields.known(entry, what, PRODUCT)
    lines = getattr(entry.get("include"), "lines", ())
    include = zip(fields.texts(entry, "include", what), lines, strict=False)
    return Rule(artifact, tuple(one for one, line in include if fields.pattern(one, line, what)))
