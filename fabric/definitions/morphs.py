"""What morphs say, as typed values; and what readers of several kinds share.

Beyond what the old tool checked, fields of chunk specs and of entries of lists, the types of
names and commands, build modes, prefixes and regular expressions are checked too: a mistake
there ended in a crash, or in a build of something else than was meant.
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
    """A morph file that another one names, and where it does."""

    path: str
    line: int


class StrataEntry(msgspec.Struct):
    """One stratum of a system.  ``artifacts`` is None when it takes them all."""

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


class ChunkSpec(msgspec.Struct):
    """A chunk as its stratum describes it."""

    line: int
    name: str
    repo: str
    ref: str
    morph: Reference | None  # None: by build system
    build_system: str
    mode: Mode
    prefix: str
    depends: tuple[str, ...]  # names of other chunks of the stratum
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
    commands: dict[str, tuple[str, ...]]  # those it gives itself
    products: tuple[Rule, ...]
    max_jobs: int | None
    devices: tuple[Device, ...]
    #: {artifact: {prefix: commands}}, and the line of each artifact
    integration: dict[str, dict[str, tuple[str, ...]]]
    integration_lines: dict[str, int]


def morph_path(path: str) -> str:
    """A morph's path as it is read: without a directory the suffix may be left out."""
    return path if "/" in path or path.endswith(".morph") else f"{path}.morph"


def reference(fields: Fields, given: Map, what: str) -> Reference:
    """The file named in field ``morph``."""
    path = fields.text(given, "morph", what)
    line = given.lines.get("morph", given.line)
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
    """The rules that field ``key`` holds, if their patterns are within the bound."""
    if sum(len(rule.include) for rule in rules) <= bounds.PATTERNS:
        return tuple(rules)
    line = given.lines[key]
    fields.report(line, f"{what}: {key!r} has more than {bounds.PATTERNS:,} patterns")
    return ()


def split_rule(fields: Fields, entry: Map, what: str, *, suffix: bool = False) -> Rule:
    """One ``{artifact, include}``; a ``suffix`` is only the end of a name."""
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
