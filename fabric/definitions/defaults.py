"""Reads ``VERSION`` and ``DEFAULTS``, which apply to a whole definitions repository.

Without DEFAULTS, or with an empty one, the only build system is ``manual``, and one split rule
assigns all paths to an artifact with the name of the chunk or stratum.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.definitions.fields import Fields, Findings, kind_of, listing
from fabric.definitions.graph import PHASES, Rule
from fabric.definitions.located_yaml import Map, parse
from fabric.definitions.morphs import few, split_rule

SUPPORTED = (7, 8)

#: Version -> how to migrate to it from the version before.
_MIGRATIONS = {
    2: "let every 'morph' of a chunk spec name a file that is in the definitions",
    5: "name deployment extensions by their path: 'extensions/kvm', not 'kvm'",
    6: "give every chunk spec either 'morph' or 'build-system': nothing is detected any more",
    7: "add a DEFAULTS file with 'build-systems' and 'split-rules'",
}
_BUILD_COMMANDS = tuple(f"{phase}-commands" for phase in PHASES if phase != "test")
_EVERYTHING = (Rule("", (".*",)),)


class Defaults(msgspec.Struct, frozen=True):
    """Build systems {name: {step: commands}}, and default split rules: ``artifact`` is a suffix."""

    build_systems: Mapping[str, Mapping[str, tuple[str, ...]]]
    chunk_rules: tuple[Rule, ...]
    stratum_rules: tuple[Rule, ...]


def version(data: bytes | None, findings: Findings) -> int | None:
    """The version of the definitions format; None if it is not supported, which is reported."""
    fields = Fields("VERSION", findings)
    if data is None:
        fields.report(
            1,
            "there is no such file at the root of the definitions, so they are of version 0 of"
            f" the format: {_migration(0)}",
        )
        return None
    before = len(findings.errors)
    given = parse(data, "VERSION", findings.errors)
    if len(findings.errors) > before:
        return None
    if not isinstance(given, Map) or "version" not in given:
        fields.report(1, "must hold a mapping with the format's number, like 'version: 8'")
        return None
    fields.known(given, "VERSION", ("version",))
    number = given["version"]
    line = given.lines["version"]
    if type(number) is not int:
        fields.report(line, f"'version' must be a number, like 8, not {kind_of(number)}")
    elif 0 <= number < SUPPORTED[0]:
        fields.report(
            line,
            f"version {number} of the definitions format is not supported: {_migration(number)}",
        )
    elif number not in SUPPORTED:
        fields.report(
            line,
            f"version {number} of the definitions format is unknown, only 7 and 8 are supported:"
            " use a release of this tool that supports it",
        )
    else:
        return number
    return None


def _migration(number: int) -> str:
    """How to migrate from a version to a supported one."""
    todo = [f"\n  ({one}) {text}" for one, text in _MIGRATIONS.items() if one > number]
    return (
        "7 and 8 are supported; to migrate, do what each newer version asks for and write"
        f" 'version: 7' into VERSION:{''.join(todo)}"
    )


def defaults(data: bytes | None, findings: Findings) -> Defaults | None:
    """The contents of DEFAULTS; None if it has mistakes, which are reported."""
    before = len(findings.errors)
    given = None if data is None else parse(data, "DEFAULTS", findings.errors)
    fields = Fields("DEFAULTS", findings)
    if given is None:
        given = Map(1)
    elif not isinstance(given, Map):
        fields.report(1, f"must hold a mapping, not {kind_of(given)}")
        return None
    fields.known(given, "DEFAULTS", ("build-systems", "split-rules"))
    made = Defaults(_build_systems(fields, given), *_rules(fields, given))
    return made if len(findings.errors) == before else None


def _build_systems(fields: Fields, given: Map) -> dict[str, dict[str, tuple[str, ...]]]:
    """The build systems.  They have no pre- and post- commands, which only chunks have."""
    made: dict[str, dict[str, tuple[str, ...]]] = {"manual": {}}
    entries = given.get("build-systems")
    if entries is None:
        return made
    table = fields.mapping(entries, given.lines["build-systems"], "'build-systems'")
    for name in table or ():
        what = f"build system {name}"
        entry = fields.mapping(entries[name], entries.lines[name], what)
        if entry is None:
            continue
        for step in entry:
            if step not in _BUILD_COMMANDS:
                fields.report(
                    entry.lines[step],
                    f"{what}: unknown field {step!r}; a build system has only"
                    f" {listing(_BUILD_COMMANDS)}",
                )
        made[name] = {
            step: fields.commands(entry, step, what) for step in _BUILD_COMMANDS if step in entry
        }
    return made


def _rules(fields: Fields, given: Map) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """The default split rules of chunks and of strata."""
    entries = given.get("split-rules")
    if entries is None:
        return _EVERYTHING, _EVERYTHING
    table = fields.mapping(entries, given.lines["split-rules"], "'split-rules'")
    if table is None:
        return _EVERYTHING, _EVERYTHING
    fields.known(table, "'split-rules'", ("chunk", "stratum"))
    made = []
    for kind in ("chunk", "stratum"):
        rules = []
        for line, item in fields.items(table, kind, "'split-rules'"):
            entry = fields.mapping(item, line, f"{kind} split rule")
            if entry is not None:
                rules.append(split_rule(fields, entry, f"{kind} split rule", suffix=True))
        made.append(few(fields, rules, table, kind, "'split-rules'") or _EVERYTHING)
    return made[0], made[1]
