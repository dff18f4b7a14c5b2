"""Reads and validates system morphs.

Existing definitions rely on these rules:

- ``arch: armv7`` means ``armv7l``.
- ``armv8l64`` is Baserock's name of ``aarch64``: commands may test ``$MORPH_ARCH`` for it.
- ``repo`` and ``ref`` in an entry of ``strata`` are ignored with a warning.
- A name that is not an artifact of the stratum is ignored with a warning, unless it looks like a
  typo.
- With an ``alias``, a system can list a stratum twice.
"""

from __future__ import annotations

from fabric.definitions.fields import Fields, listing
from fabric.definitions.located_yaml import Map
from fabric.definitions.morphs import COMMON, Fieldset, StrataEntry, SystemMorph, reference
from fabric.errors import suggest

ARCHITECTURES = frozenset({
    "aarch64", "armv5l", "armv7l", "armv7lhf", "armv7b", "armv8l64", "armv8b64", "x86_32",
    "x86_64", "ppc64", "mips32l", "mips32b", "mips64l", "mips64b", "testarch",
})  # fmt: skip
#: Names of architectures elsewhere -> ours.
_ELSEWHERE = {
    "amd64": "x86_64", "x64": "x86_64", "i386": "x86_32", "i586": "x86_32", "i686": "x86_32",
    "x86": "x86_32", "arm64": "aarch64", "aarch64_be": "armv8b64",
    "armhf": "armv7lhf", "armel": "armv5l", "mipsel": "mips32l", "mips": "mips32b",
    "mips64el": "mips64l", "mips64": "mips64b", "powerpc64": "ppc64",
}  # fmt: skip
SYSTEM = COMMON | {
    "arch": (
        "word, required",
        f"one of {', '.join(f'`{arch}`' for arch in sorted(ARCHITECTURES))}",
    ),
    "strata": ("list, required", "the strata of the system"),
    "configuration-extensions": ("list of text", "accepted, and without effect"),
}
OBSOLETE = ("disk-size", "system-kind")
ENTRY: Fieldset = {
    "name": ("text, required", "the name of the stratum, as its morph gives it"),
    "morph": ("path, required", "the morph of the stratum"),
    "artifacts": ("list of names", "the stratum artifacts that the system takes; default: all"),
    "alias": ("name", "allows a second entry for the same stratum"),
    "repo": ("", "ignored, with a warning"),
    "ref": ("", "ignored, with a warning"),
}


def similar(arch: str) -> str:
    """A hint for an unknown architecture; "" if none is similar."""
    if arch in _ELSEWHERE:
        return f"; did you mean {_ELSEWHERE[arch]!r}?"
    return suggest(arch, ARCHITECTURES)


def system(fields: Fields, given: Map) -> SystemMorph:
    """The system morph in ``given``; mistakes are reported to ``fields``."""
    name = fields.name(given, "name", "system")
    what = f"system {name}".rstrip()
    for key in OBSOLETE:
        if key in given:
            fields.report(given.lines[key], f"{what}: the field {key!r} is obsolete: remove it")
    fields.known(given, what, SYSTEM, but=OBSOLETE)
    arch = fields.text(given, "arch", what)
    arch = "armv7l" if arch == "armv7" else arch
    if arch and arch not in ARCHITECTURES:
        hint = similar(arch) or f"; known are {listing(sorted(ARCHITECTURES))}"
        fields.report(given.lines["arch"], f"{what}: unknown architecture {arch!r}{hint}")
    fields.texts(given, "configuration-extensions", what)
    entries: list[StrataEntry] = []
    seen: dict[str, int] = {}
    for line, item in fields.items(given, "strata", what):
        entry = fields.mapping(item, line, f"{what}: an entry of 'strata'")
        if entry is None:
            continue
        entries.append(_entry(fields, entry, what))
        key = entry.get("alias") or entries[-1].morph.path
        if isinstance(key, str) and key in seen:
            fields.report(
                line, f"{what}: {key!r} is listed already in line {seen[key]}: remove one of them"
            )
        elif isinstance(key, str):
            seen[key] = line
    if not given.get("strata"):
        line = given.lines.get("strata", given.line)
        fields.report(line, f"{what} has no strata: list at least one in 'strata'")
    description = fields.description(given, what)
    return SystemMorph(fields.file, given.line, name, arch, description, tuple(entries))


def _entry(fields: Fields, entry: Map, what: str) -> StrataEntry:
    name = fields.text(entry, "name", f"{what}: an entry of 'strata'")
    what = f"{what}: stratum {name}".rstrip()
    fields.known(entry, what, ENTRY)
    fields.ignored(entry, what, ("repo", "ref"))
    if "alias" in entry:
        fields.name(entry, "alias", what)
    artifacts = None
    if "artifacts" in entry:
        lines = getattr(entry["artifacts"], "lines", ())
        artifacts = tuple(zip(fields.texts(entry, "artifacts", what), lines, strict=False))
        if entry["artifacts"] == []:
            fields.report(
                entry.lines["artifacts"],
                f"{what}: 'artifacts' is empty: remove that field to take them all, or the whole"
                " entry to take none",
            )
    morph = reference(fields, entry, what)
    return StrataEntry(name, morph, artifacts, entry.lines.get("name", entry.line))
